"""A libvirt that answers at qemu:///system, started if need be and stopped by the last who needs it.

Several test runs, a demo and people share one machine, so nothing here assumes to be alone:

- Each user of the lab holds a shared lock on a file; the kernel drops it when the process dies, however.
- Who finds that libvirt does not answer starts it and notes pid and start time of what was started.
- Who leaves last (nobody holds the shared lock) stops what stands in the note, and only that: a daemon
  that ran before is never touched. While other domains run or other clients are connected the daemons
  stay, with their note, for the next last one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Self

from . import machine

URI = "qemu:///system"
REAPER = Path(__file__).with_name("reaper.py")
START_TIMEOUT = 90.0   # seconds; a first start on a slow machine probes every QEMU binary
GOODBYE_TIMEOUT = 1.0  # seconds; libvirtd holds a connection for a moment after its client has closed it
STOP_TIMEOUT = 20.0    # seconds
SYSTEMD_UNITS = ("virtlogd.socket", "virtlogd.service", "libvirtd.socket", "libvirtd-ro.socket",
                 "libvirtd-admin.socket", "libvirtd.service")


class LibvirtUnavailableError(Exception):
    """libvirt does not answer and could not be started; the message says what was tried."""


class LibvirtService:
    """One user's share in a libvirt that answers at qemu:///system. A context manager.

    Raises LibvirtUnavailableError on entering if nothing answers and nothing could be started.
    """

    def __init__(self, run_dir: Path = machine.RUN_DIR) -> None:
        self._dir = run_dir
        self._users: IO[str] | None = None
        self.started = False

    def __enter__(self) -> Self:
        self._dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        with self._mutex():
            users = (self._dir / "users").open("a")
            fcntl.flock(users, fcntl.LOCK_SH)
            self._users = users
            try:
                self._ensure()
            except BaseException:
                self._leave()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._users is not None:
            with self._mutex():
                self._leave()

    def revive(self) -> None:
        """Starts libvirt again if it has died meanwhile: QEMU lives on, and must be ended through it."""
        with self._mutex():
            self._ensure()

    @contextlib.contextmanager
    def _mutex(self) -> Iterator[None]:
        """One at a time decides about starting and stopping."""
        with (self._dir / "mutex").open("a") as mutex:
            fcntl.flock(mutex, fcntl.LOCK_EX)
            yield

    def _ensure(self) -> None:
        note = self._read_note()
        if machine.kvm_closed_to_qemu():
            note.setdefault("kvm_mode", stat.S_IMODE(machine.KVM_DEVICE.stat().st_mode))
            self._write_note(note)
            machine.KVM_DEVICE.chmod(0o666)
        if answers():
            return
        if Path("/run/systemd/system").is_dir():
            note["units"] = [unit for unit in SYSTEMD_UNITS if _inactive(unit)]
            self._write_note(note)
            _run("systemctl", "start", "libvirtd.service")
        else:
            for name in ("virtlogd", "libvirtd"):
                pid_file = Path(f"/run/{name}.pid")
                if _daemon(pid_file, name) is None:
                    _run(sys.executable, str(REAPER), machine.program(name), "-d")
                    _wait(lambda p=pid_file, n=name: _daemon(p, n) is not None, START_TIMEOUT)
                    note.setdefault("daemons", {})[name] = _daemon(pid_file, name)
                    self._write_note(note)
        self.started = True
        if not _wait(answers, START_TIMEOUT):
            raise LibvirtUnavailableError(f"libvirt does not answer at {URI} {START_TIMEOUT:.0f} s after its "
                                          "start: look at its log (journalctl -u libvirtd, or libvirtd -v)")

    def _leave(self) -> None:
        """Drops the share; the last one stops what the note names. The caller holds the mutex."""
        assert self._users is not None
        try:
            fcntl.flock(self._users, fcntl.LOCK_UN)
            fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        else:
            self._stop()
        finally:
            self._users.close()
            self._users = None

    def _stop(self) -> None:
        note = self._read_note()
        if (note.get("daemons") or note.get("units")) and _used_by_others():
            return
        if note.get("units"):
            _run("systemctl", "stop", *reversed(note["units"]))
        for name in ("libvirtd", "virtlogd"):
            daemon = note.get("daemons", {}).get(name)
            if daemon is not None and _daemon(Path(f"/run/{name}.pid"), name) == daemon:
                os.kill(daemon[0], signal.SIGTERM)
                _wait(lambda d=daemon: _start_time(d[0]) != d[1], STOP_TIMEOUT)
        if "kvm_mode" in note:
            with contextlib.suppress(OSError):
                machine.KVM_DEVICE.chmod(note["kvm_mode"])
        (self._dir / "started.json").unlink(missing_ok=True)

    def _read_note(self) -> dict[str, Any]:
        try:
            note: dict[str, Any] = json.loads((self._dir / "started.json").read_text())
        except (OSError, ValueError):
            return {}
        return note

    def _write_note(self, note: dict[str, Any]) -> None:
        (self._dir / "started.json").write_text(json.dumps(note))


def answers() -> bool:
    """True if libvirt answers at qemu:///system now."""
    import libvirt

    libvirt.registerErrorHandler(lambda *_: None, None)   # else libvirt prints each error
    try:
        libvirt.open(URI).close()
    except libvirt.libvirtError:
        return False
    return True


def _used_by_others() -> bool:
    """True if a domain runs or a client is connected: then the daemons are not for us to stop."""
    import libvirt

    if not _wait(lambda: not _connected(), GOODBYE_TIMEOUT):
        return True
    try:
        connection = libvirt.open(URI)
    except libvirt.libvirtError:
        return False
    try:
        return bool(connection.listDomainsID())
    finally:
        connection.close()


def _connected() -> bool:
    """True if libvirt's socket has a client (proc(5), net/unix: state 03)."""
    lines = Path("/proc/net/unix").read_text().splitlines()[1:]
    return any(line.split()[5] == "03" and line.endswith("/libvirt/libvirt-sock") for line in lines)


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                       timeout=START_TIMEOUT)
    except (OSError, subprocess.SubprocessError) as error:
        text = (getattr(error, "stderr", None) or str(error)).strip()
        raise LibvirtUnavailableError(f"`{' '.join(command)}` failed: {text}") from error


def _inactive(unit: str) -> bool:
    return subprocess.run(["systemctl", "is-active", "--quiet", unit], check=False).returncode != 0


def _daemon(pid_file: Path, name: str) -> list[int] | None:
    """Pid and start time of the running daemon of this name, or None."""
    try:
        pid = int(pid_file.read_text())
        if Path(f"/proc/{pid}/comm").read_text().strip() != name:
            return None
    except (OSError, ValueError):
        return None
    start = _start_time(pid)
    return None if start is None else [pid, start]


def _start_time(pid: int) -> int | None:
    """Start of a process in clock ticks since boot (proc(5), field 22); None if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def _wait(condition: Any, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
