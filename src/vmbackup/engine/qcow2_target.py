"""A new qcow2 image as the target of a restore, written through qemu-nbd by several connections."""

import os
from collections.abc import Sequence
from pathlib import Path

from vmbackup.engine.qemu_img import run_tool
from vmbackup.engine.qemu_nbd import QemuNbd
from vmbackup.engine.target_errors import nbd_error, told
from vmbackup.engine.targets import Writer
from vmbackup.nbd.client import NbdClient
from vmbackup.nbd.errors import NbdError

_DEPTH = 4  # writes outstanding a connection
# Options of qemu-img create that are taken over from the original image, where it had them.
_OPTIONS = ("cluster_size", "compat", "lazy_refcounts", "compression_type", "extended_l2")
# cache=none: the page cache would cost more CPU than the write, and make the final sync long.
_IMAGE = ["--format=qcow2", "--cache=none", "--aio=native", "--discard=unmap"]


class Qcow2Target:
    """A new qcow2 image with the options of the original."""

    def __init__(self, path: Path, size: int, attributes: dict[str, str], connections: int) -> None:
        self._path = path
        options = ",".join(f"{name}={attributes[name]}" for name in _OPTIONS if name in attributes)
        command = ["qemu-img", "create", "-q", "-f", "qcow2", *(["-o", options] if options else [])]
        run_tool([*command, str(path), str(size)], path)
        with told(path):
            os.chmod(path, 0o600)
        self._nbd = QemuNbd(path, [*_IMAGE, str(path)], connections + 1)

    def open_writer(self) -> Writer:
        """A connection of its own."""
        return NbdWriter(self._nbd.connect(), self._path)

    def finish(self) -> int:
        """Flushes and syncs the image and ends qemu-nbd."""
        client = self._nbd.connect()
        try:
            client.flush()
        except NbdError as error:
            raise nbd_error(self._path, error) from error
        finally:
            client.close()
        self._nbd.end()
        with told(self._path):
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
                taken = os.fstat(fd).st_blocks * 512
            finally:
                os.close(fd)
        self.abandon()
        return taken

    def abandon(self) -> None:
        """Ends qemu-nbd."""
        self._nbd.abandon()


class NbdWriter:
    """A connection that writes."""

    def __init__(self, client: NbdClient, path: Path) -> None:
        self._client, self._path = client, path

    def write(self, offset: int, pieces: Sequence[bytes]) -> None:
        """See Writer."""
        try:
            while self._client.outstanding >= _DEPTH:
                self._client.wait()
            self._client.submit_write(offset, pieces)
        except NbdError as error:
            raise nbd_error(self._path, error) from error

    def zero(self, offset: int, length: int) -> None:
        """See Writer."""
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
