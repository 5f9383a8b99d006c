"""Where a restore writes: a new qcow2 image through qemu-nbd, or a new raw file."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from vmbackup.errors import TargetError, VmbackupError
from vmbackup.nbd.client import NbdClient
from vmbackup.nbd.errors import NbdError

# Writes of 1 MiB, four outstanding a connection.
WRITE_BYTES = 1 << 20
_DEPTH = 4
_START_SECONDS = 30.0
_STOP_SECONDS = 600.0  # qemu-nbd writes what its cache holds
# Options of qemu-img create that are taken over from the original image, where it had them.
_FOLDERS = "vmbackup-restore-"
_QCOW2_OPTIONS = ("cluster_size", "compat", "lazy_refcounts", "compression_type", "extended_l2")


class Writer(Protocol):
    """One thread's way to the image."""

    def write(self, offset: int, pieces: Sequence[bytes]) -> None:
        """Writes the pieces one after the other from `offset` on. May return before they are written."""

    def close(self) -> None:
        """Waits until all is written. Raises TargetError."""

    def abandon(self) -> None:
        """Gives up what is outstanding; harmless after `close`. Never raises."""


class Target(Protocol):
    """A new image in the making, under its temporary name."""

    def open_writer(self) -> Writer:
        """For one thread."""

    def finish(self) -> int:
        """Whole and synced; gives the bytes that it takes on its file system."""

    def abandon(self) -> None:
        """Stops what runs for it. Never raises."""


class RawTarget:
    """A sparse raw file."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        with _told(path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            os.ftruncate(self._fd, size)

    def open_writer(self) -> Writer:
        """All threads share the file."""
        return _RawWriter(self._fd, self._path)

    def finish(self) -> int:
        """Syncs the file."""
        with _told(self._path):
            os.fsync(self._fd)
        taken = os.fstat(self._fd).st_blocks * 512
        self.abandon()
        return taken

    def abandon(self) -> None:
        """Closes the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _RawWriter:
    def __init__(self, fd: int, path: Path) -> None:
        self._fd, self._path = fd, path

    def write(self, offset: int, pieces: Sequence[bytes]) -> None:
        left = sum(map(len, pieces))
        with _told(self._path):
            done = os.pwritev(self._fd, pieces, offset)
            if done < left:
                rest = memoryview(b"".join(pieces))
                while done < left:
                    done += os.pwrite(self._fd, rest[done:], offset + done)

    def close(self) -> None:
        """Nothing is held back."""

    def abandon(self) -> None:
        """Nothing is held back."""


class Qcow2Target:
    """A new qcow2 image, written through qemu-nbd by several connections."""

    def __init__(self, path: Path, size: int, attributes: dict[str, str], connections: int) -> None:
        self._path = path
        _sweep()
        self._folder = tempfile.mkdtemp(prefix=f"{_FOLDERS}{os.getpid()}-")
        self._process: subprocess.Popen[bytes] | None = None
        try:
            options = ",".join(f"{name}={attributes[name]}" for name in _QCOW2_OPTIONS if name in attributes)
            command = ["qemu-img", "create", "-q", "-f", "qcow2", *(["-o", options] if options else [])]
            _run([*command, str(path), str(size)], path)
            with _told(path):
                os.chmod(path, 0o600)
            self._start(connections)
        except BaseException:
            self.abandon()
            raise

    def _start(self, connections: int) -> None:
        self._socket = os.path.join(self._folder, "nbd.sock")
        pid_file = os.path.join(self._folder, "pid")
        # cache=none: the page cache would cost more CPU than the write, and make the final sync long.
        # It ends with the thread that starts it, however that ends, and lets the image go. KILL, for after a
        # TERM it may wait for ever.
        command = ["setpriv", "--pdeathsig", "KILL", "--", "qemu-nbd", "--format=qcow2", "--cache=none", "--aio=native"]
        command += [
            "--discard=unmap",
            "--persistent",
            f"--shared={connections + 1}",
            f"--socket={self._socket}",
            f"--pid-file={pid_file}",
            str(self._path),
        ]
        with open(os.path.join(self._folder, "log"), "wb") as log:
            try:
                self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            except FileNotFoundError:
                raise TargetError(f"{command[0]} is not installed", "apt install util-linux") from None
        _wait_for(pid_file, self._process, self._log)

    def _log(self) -> str:
        with contextlib.suppress(OSError):
            return Path(self._folder, "log").read_text(errors="replace").strip()
        return ""

    def open_writer(self) -> Writer:
        """A connection of its own."""
        return _NbdWriter(self._connect(), self._path)

    def _connect(self) -> NbdClient:
        try:
            return NbdClient.connect(self._socket, "")
        except NbdError as error:
            raise TargetError(f"cannot write {self._path}: {error} {self._log()}") from error

    def finish(self) -> int:
        """Flushes and syncs the image and ends qemu-nbd."""
        client = self._connect()
        try:
            client.flush()
        except NbdError as error:
            raise _nbd_error(self._path, error) from error
        finally:
            client.close()
        self._stop()
        if self._process is None or self._process.returncode != 0:
            raise TargetError(f"qemu-nbd failed on {self._path}: {self._log()}")
        with _told(self._path):
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
                taken = os.fstat(fd).st_blocks * 512
            finally:
                os.close(fd)
        self.abandon()
        return taken

    def _stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def abandon(self) -> None:
        """Ends qemu-nbd."""
        self._stop()
        shutil.rmtree(self._folder, ignore_errors=True)


class _NbdWriter:
    def __init__(self, client: NbdClient, path: Path) -> None:
        self._client, self._path = client, path

    def write(self, offset: int, pieces: Sequence[bytes]) -> None:
        try:
            while self._client.outstanding >= _DEPTH:
                self._client.wait()
            self._client.submit_write(offset, pieces)
        except NbdError as error:
            raise _nbd_error(self._path, error) from error

    def close(self) -> None:
        try:
            while self._client.outstanding:
                self._client.wait()
            self._client.flush()
        except NbdError as error:
            raise _nbd_error(self._path, error) from error

    def abandon(self) -> None:
        self._client.close()


def _sweep() -> None:
    """Removes the folders of restores that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDERS}*"):
        owner = folder.name.removeprefix(_FOLDERS).partition("-")[0]
        if owner.isdecimal() and not os.path.exists(f"/proc/{owner}"):
            shutil.rmtree(folder, ignore_errors=True)


def image_info(path: Path) -> dict[str, object]:
    """What qemu-img says of an image."""
    done = subprocess.run(
        ["qemu-img", "info", "-U", "--output=json", str(path)], capture_output=True, check=False, text=True
    )
    if done.returncode:
        raise TargetError(f"qemu-img cannot read {path}: {done.stderr.strip()}")
    found: dict[str, object] = json.loads(done.stdout)
    return found


def _nbd_error(path: Path, error: NbdError) -> VmbackupError:
    code = getattr(error, "errno", None)
    if code == errno.ENOSPC:
        return TargetError(f"no space is left for {path}", "make space, or restore to another folder")
    return TargetError(f"cannot write {path}: {error}")


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TargetError(f"no space is left for {path}", "make space, or restore to another folder") from error
        raise TargetError(f"cannot write {path}: {error.strerror}") from error


def _run(command: list[str], path: Path) -> None:
    try:
        done = subprocess.run(command, capture_output=True, check=False, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise TargetError(f"{command[0]} is not installed", "apt install qemu-utils") from None
    if done.returncode:
        raise TargetError(f"cannot make {path}: {done.stderr.strip()}")


def _wait_for(pid_file: str, process: subprocess.Popen[bytes], log: object) -> None:
    """qemu-nbd writes its pid file once it listens."""
    import time

    deadline = time.monotonic() + _START_SECONDS
    while not os.path.exists(pid_file):
        if process.poll() is not None or time.monotonic() > deadline:
            raise TargetError(f"qemu-nbd did not start: {log() if callable(log) else log}", "apt install qemu-utils")
        time.sleep(0.005)
