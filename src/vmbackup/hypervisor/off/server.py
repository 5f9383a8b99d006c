"""A qemu-nbd that serves an image of a guest that is off, for reading only, and ends with us."""

import os
import subprocess
import tempfile
import time
from typing import IO

from vmbackup.errors import HypervisorError
from vmbackup.hypervisor.off.image import OffImage, refused
from vmbackup.hypervisor.qemu_secret import QemuSecret
from vmbackup.nbd import NbdClient, NbdError

_START_SECONDS = 60.0
_POLL = 0.005  # seconds
# Connections at a time: those of all readers and maps, kept or in use.
_CONNECTIONS = 100
# Our number as the child sees it tells whether we died before it asked to die with us.
_WITH_US = ["setpriv", "--pdeathsig", "KILL", "--", "sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"']


class OffServer:
    """Serves from construction until `end`. The thread that makes it must live as long: it ends with that thread.

    `bitmap` is told of as qemu:dirty-bitmap:NAME. `shared`: QEMU's lock is not taken, anybody may write meanwhile.
    Raises HypervisorError, JobConflictError where the image is in use.
    """

    def __init__(self, image: OffImage, socket: str, *, bitmap: str | None, shared: bool) -> None:
        self.image, self._socket = image, socket
        self._secret = QemuSecret(image.secret) if image.secret is not None else None
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed by `end`
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._process = self._start(bitmap, shared=shared)
            self._await(self._process)
        except BaseException:
            self.end()
            raise

    def _start(self, bitmap: str | None, *, shared: bool) -> subprocess.Popen[bytes]:
        command = [*_WITH_US, str(os.getpid()), "qemu-nbd", "--read-only", "--persistent", f"--shared={_CONNECTIONS}"]
        command += [f"--socket={self._socket}", f"--export-name={self.image.target}", *self.image.caching()]
        command += [f"--bitmap={bitmap}"] if bitmap else []
        command += [*(self._secret.arguments if self._secret else ()), self.image.name(shared=shared)]
        fds = (self._secret.fd,) if self._secret else ()
        try:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, pass_fds=fds
            )
        except FileNotFoundError:
            raise HypervisorError(f"{command[0]} is not installed", "apt install util-linux") from None

    def _await(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if process.poll() is not None or time.monotonic() > deadline:
                raise refused(self.image.path, self._said())
            time.sleep(_POLL)

    def _answers(self) -> bool:
        if not os.path.exists(self._socket):
            return False
        try:
            NbdClient.connect(self._socket, self.image.target, timeout=_START_SECONDS, at_once=True).close()
        except NbdError:
            return False
        return True

    def _said(self) -> str:
        self._log.seek(0)
        text = self._log.read().decode(errors="replace")
        return "qemu-nbd: it is not installed (apt install qemu-utils)" if "not found" in text else text

    @property
    def alive(self) -> bool:
        """Whether it still serves."""
        return self._process is not None and self._process.poll() is None

    def end(self) -> None:
        """Ends it at once, and with it QEMU's lock of the image. Never raises; may be called twice."""
        if self._process is not None:
            self._process.kill()  # it only reads, and has been seen to sleep on over a TERM
            self._process.wait()
        self._log.close()
        if self._secret is not None:
            self._secret.__exit__()
            self._secret = None
