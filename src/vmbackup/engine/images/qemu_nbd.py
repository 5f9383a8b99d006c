"""A qemu-nbd that writes an image for us, and ends with us."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from vmbackup.engine.images.target_errors import in_use
from vmbackup.errors import TargetError
from vmbackup.hypervisor.qemu_secret import QemuSecret
from vmbackup.nbd.client import NbdClient
from vmbackup.nbd.errors import NbdError

_START_SECONDS = 300.0  # the key of a LUKS image takes seconds of CPU time, made on a quicker host many more
_STOP_SECONDS = 600.0  # it writes what its cache holds
_TERM_SECONDS = 1.0
LOCKED = "Is another process using the image"  # what QEMU's programs say
_REFUSALS = ("Permission denied", "Operation not permitted", "Read-only file system")
_FOLDERS = "vmbackup-restore-"


class QemuNbd:
    """A writing qemu-nbd on one image, with its socket in a folder of its own."""

    def __init__(self, path: Path, image: list[str], connections: int, *, secret: QemuSecret | None = None) -> None:
        """`image`: the options and the name that tell qemu-nbd what to open. Raises TargetError."""
        self._path, self._secret = path, secret
        _sweep()
        self._folder = tempfile.mkdtemp(prefix=f"{_FOLDERS}{os.getpid()}-")
        self._hold = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._hold, fcntl.LOCK_EX)
        self._socket = os.path.join(self._folder, "nbd.sock")
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._start(image, connections)
        except BaseException:
            self.abandon()
            raise

    def _start(self, image: list[str], connections: int) -> None:
        pid_file = os.path.join(self._folder, "pid")
        # It ends with the thread that starts it, however that ends, and lets the image go. KILL, for after a
        # TERM it may wait for ever.
        command = ["setpriv", "--pdeathsig", "KILL", "--", "qemu-nbd", "--persistent", f"--shared={connections}"]
        command += [f"--socket={self._socket}", f"--pid-file={pid_file}"]
        command += [*(self._secret.arguments if self._secret else ()), *image]
        with open(os.path.join(self._folder, "log"), "wb") as log:
            try:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=self._fds
                )
            except FileNotFoundError:
                raise TargetError(f"{command[0]} is not installed", "apt install util-linux") from None
        self._await(pid_file, self._process)

    @property
    def _fds(self) -> tuple[int, ...]:
        return (self._secret.fd,) if self._secret else ()

    def _await(self, pid_file: str, process: subprocess.Popen[bytes]) -> None:
        """qemu-nbd writes its pid file once it listens."""
        deadline = time.monotonic() + _START_SECONDS
        while not os.path.exists(pid_file):
            if process.poll() is not None:
                raise _not_started(self._path, self.log())
            if time.monotonic() > deadline:
                raise TargetError(
                    f"qemu-nbd has not opened {self._path} within {_START_SECONDS:.0f} s",
                    "look at the load of this host, and whether its storage answers",
                )
            time.sleep(0.005)

    def log(self) -> str:
        """What it said."""
        with contextlib.suppress(OSError):
            return Path(self._folder, "log").read_text(errors="replace").strip()
        return ""

    def connect(self, contexts: Sequence[str] = ()) -> NbdClient:
        """A connection of its own. Raises TargetError."""
        try:
            return NbdClient.connect(self._socket, "", contexts=contexts)
        except NbdError as error:
            raise TargetError(f"cannot write {self._path}: {error} {self.log()}") from error

    def end(self) -> None:
        """Ends it once all is written. Raises TargetError."""
        self._stop()
        if self._process is None or self._process.returncode != 0:
            raise TargetError(f"qemu-nbd failed on {self._path}: {self.log()}")

    def _stop(self) -> None:
        if self._process is None:
            return
        deadline = time.monotonic() + _STOP_SECONDS
        while self._process.poll() is None:
            # Now and then qemu-nbd (7.2) sleeps on over a TERM that comes as it goes to sleep; the next one wakes it.
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_TERM_SECONDS)
            if time.monotonic() > deadline:
                self._process.kill()

    def abandon(self) -> None:
        """Ends it, whatever is written. Never raises."""
        self._stop()
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._hold >= 0:
            os.close(self._hold)
            self._hold = -1


def _not_started(path: Path, log: str) -> TargetError:
    """Why qemu-nbd does not have the image open."""
    if "Invalid password" in log:  # "cannot unlock any keyslot"
        return TargetError(f"the passphrase of {path} is wrong", "name the right one with --luks-passphrase-file")
    if LOCKED in log:
        return in_use(path, "QEMU has it open: a guest's, a backup's or another restore's")
    if refused := next((why for why in _REFUSALS if why in log), None):
        return TargetError(f"cannot write {path}: {refused}", "look at its attributes (lsattr) and its file system")
    return TargetError(f"qemu-nbd did not start: {log}", "apt install qemu-utils")


def _sweep() -> None:
    """Removes the folders of restores that were killed: nobody holds them, in whatever namespace of processes."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDERS}*"):
        with contextlib.suppress(OSError):
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(fd)
