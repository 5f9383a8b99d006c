"""Starts and asks the process that looks into a guest's file systems (guestfs_worker.py), shut in as far as Linux can.

It has namespaces of its own (no network, no other process to be seen), no environment of ours, and runs as nobody: of
the host it reaches the sockets that serve the disks, and what everybody may read. The disks themselves are read by a
kernel in a virtual machine below it.
"""

import fcntl
import grp
import json
import logging
import os
import pwd
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Self

from vmbackup.engine.files.appliance import INSTALL
from vmbackup.errors import GuestFilesError

_log = logging.getLogger("vmbackup.files")
_NAMESPACES = ("--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
_ANSWER_SECONDS = 600.0  # without hardware virtualisation a start takes half a minute on an idle machine
_STOP_SECONDS = 10.0
_MOST_ANSWER = 16 << 20  # bytes of an answer: file systems of thousands of volumes
_MOST_LINE = 64 << 10  # bytes of an entry of a folder: a name and a link's target, escaped
_MOST_ENTRIES = 2_000_000
_PREFIX = "vmbackup-files-"
_YOUNG_SECONDS = 60.0  # a folder that is not locked yet is not left behind
_PASSED_ON = {"LIBGUESTFS_HV", "LIBGUESTFS_DEBUG", "LIBGUESTFS_TRACE"}
_ENOENT, _ENOTDIR = 2, 20


class GuestRefusal(GuestFilesError):
    """The guest's file system, or libguestfs, refused one request; others may do."""

    def __init__(self, message: str, errno: int) -> None:
        super().__init__(message)
        self.errno = errno

    @property
    def is_absence(self) -> bool:
        """There is no such file."""
        return self.errno in (_ENOENT, _ENOTDIR)


class RunFolder:
    """A folder for one run: in it a socket for the disks, and a folder of the process's own."""

    def __init__(self) -> None:
        _remove_left_behind(time.time())
        self._folder = tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True)
        self.path = Path(self._folder.name)
        self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.identity = _nobody() if os.geteuid() == 0 else None
        self.work, self.inside = self.path / "work", self.path / "work" / "appliance"
        self.inside.mkdir(parents=True)
        self.socket = self.path / "disks"
        if self.identity is not None:
            os.chown(self.path, 0, self.identity["gid"])
            self.path.chmod(0o710)  # it passes, and changes nothing here
            os.chown(self.work, self.identity["uid"], self.identity["gid"])
        self.work.chmod(0o700)

    def open_socket(self) -> None:
        """Lets the process connect to the socket, which now is there."""
        if self.identity is not None:
            os.chown(self.socket, 0, self.identity["gid"])
            self.socket.chmod(0o660)

    def remove(self) -> None:
        """All of it. Never raises."""
        self._folder.cleanup()
        os.close(self._lock)


def _remove_left_behind(now: float) -> None:
    """What a killed run left: up to 2 GiB of what its virtual machine had written."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another one's, in use, or gone meanwhile
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                told = os.fstat(descriptor)
                if told.st_uid == os.geteuid() and now - told.st_mtime > _YOUNG_SECONDS:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path)
            finally:
                os.close(descriptor)


def _nobody() -> dict[str, Any]:
    user = pwd.getpwnam("nobody")
    groups = [g.gr_gid for g in grp.getgrall() if g.gr_name == "kvm"]  # /dev/kvm
    return {"uid": user.pw_uid, "gid": user.pw_gid, "groups": groups}


def _can_virtualise() -> bool:
    """False where /dev/kvm is there and of no use: a virtual machine would hang. Others than x86 are asked by QEMU."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return True
    flags = re.search(r"^flags\b.*", text, re.MULTILINE)
    return flags is None or re.search(r"\b(vmx|svm)\b", flags[0]) is not None


class GuestProcess:
    """The process, from start to end of a block. Raises GuestFilesError, GuestRefusal for what can be refused."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._control, theirs = socket.socketpair()
        self._control.settimeout(_ANSWER_SECONDS)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the object)
        root = [] if run.identity else ["--user", "--map-current-user"]
        program = [sys.executable, "-P", "-m", "vmbackup.engine.files.guestfs_worker", str(theirs.fileno())]
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": str(run.work)}
        environment |= {"TMPDIR": str(run.work), "XDG_RUNTIME_DIR": str(run.work)}
        environment |= {k: v for k, v in os.environ.items() if k in _PASSED_ON}
        try:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "unshare", *root, *_NAMESPACES, *program],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[theirs.fileno()],
                env=environment,
                cwd="/",
                start_new_session=True,  # Ctrl-C ends us, and we end it
            )
        except FileNotFoundError:
            raise GuestFilesError("setpriv is not installed", "apt install util-linux") from None
        finally:
            theirs.close()
        self._buffer = b""
        self._descriptors: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._control.close()  # it ends by itself, and with it all that it has started
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        for descriptor in self._descriptors:
            os.close(descriptor)

    def start(self, appliance: Path, exports: list[str]) -> None:
        """Starts the virtual machine with these disks, in this order."""
        identity = self._run.identity
        given: dict[str, Any] = {"appliance": str(appliance), "inside": str(self._run.inside), "identity": identity}
        given["emulated"] = not _can_virtualise()
        try:
            self.ask("start", **given, work=str(self._run.work), socket=str(self._run.socket), exports=exports)
        except GuestRefusal as error:
            if "libguestfs.so" in error.message:
                raise GuestFilesError("libguestfs is not installed", INSTALL) from error
            _log.debug("what the process said: %s", self._last_words())
            hint = "see what 'libguestfs-test-tool' says"
            raise GuestFilesError(f"libguestfs does not start: {error.message}", hint) from error

    def ask(self, do: str, **given: Any) -> Any:
        """One request with a short answer."""
        self._send(do, given)
        return self._answer()

    def entries(self, path: str) -> list[dict[str, Any]]:
        """What is in a folder."""
        found: list[dict[str, Any]] = []
        with self.data("list", path) as file:
            while line := file.readline(_MOST_LINE):
                if len(found) >= _MOST_ENTRIES or not line.endswith(b"\n"):
                    raise GuestFilesError(f"{path} has more entries, or longer names, than can be shown")
                found.append(json.loads(line))
        return found

    @contextmanager
    def data(self, do: str, path: str) -> Iterator[BinaryIO]:
        """A request whose answer is bytes. At the end all of them must have been read, or an error raised."""
        self._send(do, {"path": path})
        self._answer()
        reader = self._descriptors.pop()
        with os.fdopen(reader, "rb") as file:
            if not stat.S_ISFIFO(os.fstat(reader).st_mode):
                raise GuestFilesError("the process that reads the guest's files misbehaves")
            try:
                yield file
            except GuestFilesError:
                file.close()
                with suppress(GuestRefusal):
                    self._answer()  # or it would be taken for that of the next request
                raise
        self._answer()

    def _send(self, do: str, given: dict[str, Any]) -> None:
        try:
            self._control.sendall(json.dumps({"do": do, **given}).encode() + b"\n")
        except OSError:
            raise self._gone() from None

    def _answer(self) -> Any:
        while b"\n" not in self._buffer:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._control, 1 << 16, 1)
            except TimeoutError:
                raise GuestFilesError(f"libguestfs gave no answer in {_ANSWER_SECONDS:.0f} s") from None
            except OSError:
                raise self._gone() from None
            self._descriptors += descriptors
            self._buffer += data
            if not data or len(self._buffer) > _MOST_ANSWER:
                raise self._gone()
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer = json.loads(line)
        if "error" in answer:
            raise GuestRefusal(f"the guest's file system cannot be read: {answer['error']}", int(answer["errno"]))
        return answer["ok"]

    def _gone(self) -> GuestFilesError:
        words = self._last_words()
        if words.startswith("unshare:"):
            hint = "it needs root, or a kernel that lets users make namespaces; containers often forbid both"
            return GuestFilesError(f"the process that reads the guest's files cannot be shut in: {words}", hint)
        return GuestFilesError(f"the process that reads the guest's files ended: {words or 'without a word'}")

    def _last_words(self) -> str:
        descriptor = self._log.fileno()  # its offset is the process's too: it is left alone
        end = os.fstat(descriptor).st_size
        return os.pread(descriptor, 2000, max(0, end - 2000)).decode(errors="replace").strip()[-500:]
