"""An image that is written through a qemu-nbd of ours, by several connections."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from vmbackup.engine.images.qemu_nbd import QemuNbd
from vmbackup.engine.images.target_errors import nbd_error, told
from vmbackup.engine.images.targets import Writer
from vmbackup.hypervisor.qemu_secret import QemuSecret
from vmbackup.nbd.client import NbdClient
from vmbackup.nbd.errors import NbdError

_DEPTH = 4  # writes outstanding a connection


class NbdTarget:
    """An image that qemu-nbd has open."""

    def __init__(self, path: Path, image: list[str], connections: int, *, secret: QemuSecret | None = None) -> None:
        """`image`: what tells qemu-nbd what to open. Raises TargetError."""
        self.path = path
        self.touched = False  # whether anything was written to it
        self._control: NbdClient | None = None
        self.nbd = QemuNbd(path, image, connections + 1, secret=secret)

    def open_writer(self) -> Writer:
        """A connection of its own."""
        return NbdWriter(self.nbd.connect(), self)

    def expect(self, offset: int, length: int) -> None:
        """See Target."""

    def sync(self) -> None:
        """Flushes the image."""
        try:
            if self._control is None:
                self._control = self.nbd.connect()
            self._control.flush()
        except NbdError as error:
            raise nbd_error(self.path, error) from error

    def finish(self) -> int:
        """Flushes and syncs the image and ends qemu-nbd."""
        self.sync()
        self._hang_up()
        self.nbd.end()
        with told(self.path):
            self.trim()
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
                found = os.fstat(fd)
            finally:
                os.close(fd)
        self.abandon()
        return 0 if stat.S_ISBLK(found.st_mode) else found.st_blocks * 512

    def trim(self) -> None:
        """Gives back what was reserved and not written; qemu-nbd has ended."""

    def abandon(self) -> None:
        """Ends qemu-nbd."""
        self._hang_up()
        self.nbd.abandon()

    def _hang_up(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None


class NbdWriter:
    """A connection that writes."""

    def __init__(self, client: NbdClient, target: NbdTarget) -> None:
        self._client, self._target, self._path = client, target, target.path

    def write(self, offset: int, pieces: Sequence[bytes]) -> None:
        """See Writer."""
        self._target.touched = True
        try:
            while self._client.outstanding >= _DEPTH:
                self._client.wait()
            self._client.submit_write(offset, pieces)
        except NbdError as error:
            raise nbd_error(self._path, error) from error

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See Writer."""
        try:
            self._client.read_into(offset, buffer)
        except NbdError as error:
            raise nbd_error(self._path, error) from error

    def zero(self, offset: int, length: int) -> None:
        """See Writer."""
        self._target.touched = True
        try:
            self._client.zero(offset, length)
        except NbdError as error:
            raise nbd_error(self._path, error) from error

    def close(self) -> None:
        """See Writer."""
        try:
            while self._client.outstanding:
                self._client.wait()
            self._client.flush()
        except NbdError as error:
            raise nbd_error(self._path, error) from error

    def abandon(self) -> None:
        """See Writer."""
        self._client.close()
