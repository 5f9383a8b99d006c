"""A new raw file as the target of a restore."""

import os
from collections.abc import Sequence
from pathlib import Path

from vmbackup.engine.images.direct_file import DirectFile, DirectWriter
from vmbackup.engine.images.reserved_space import reserve
from vmbackup.engine.images.target_errors import told
from vmbackup.engine.images.targets import WRITE_BYTES, Writer

_ZEROS = bytes(WRITE_BYTES)
_WORTH_RESERVING = 1 << 20  # bytes: a call for each small part would cost more than it gains


class RawTarget:
    """A raw file, sparse unless its space is to be reserved (`falloc`) or written (`full`) first."""

    def __init__(self, path: Path, size: int, preallocation: str = "off", *, resume: bool = False) -> None:
        """`resume`: the file is there, and stays as it is."""
        self._path = path
        self._file = DirectFile(path, 0 if resume else os.O_CREAT | os.O_EXCL)
        try:
            with told(path):
                os.ftruncate(self._file.fd, size)
                if preallocation != "off" and size and not resume:
                    os.posix_fallocate(self._file.fd, 0, size)
                if preallocation == "full" and not resume:
                    self._fill(size)
        except BaseException:
            self.abandon()
            raise

    def _fill(self, size: int) -> None:
        writer = self.open_writer()
        try:
            writer.zero(0, size)
            writer.close()
        finally:
            writer.abandon()

    def open_writer(self) -> Writer:
        """All threads share the file."""
        return _RawWriter(self._file)

    def expect(self, offset: int, length: int) -> None:
        """See Target: of a hole that is filled only one direct write at a time would go on."""
        if self._file.direct >= 0 and length >= _WORTH_RESERVING:
            reserve(self._file.fd, offset, length)

    def sync(self) -> None:
        """See Target."""
        with told(self._path):
            os.fdatasync(self._file.fd)

    def finish(self) -> int:
        """Syncs the file."""
        with told(self._path):
            os.fsync(self._file.fd)
        taken = os.fstat(self._file.fd).st_blocks * 512
        self.abandon()
        return taken

    def abandon(self) -> None:
        """Closes the file."""
        self._file.close()


class _RawWriter:
    def __init__(self, file: DirectFile) -> None:
        self._file, self._writer = file, DirectWriter(file)

    def write(self, offset: int, pieces: Sequence[bytes]) -> None:
        self._writer.write(offset, pieces)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._file.read_into(offset, buffer)

    def zero(self, offset: int, length: int) -> None:
        for at in range(offset, offset + length, WRITE_BYTES):
            self.write(at, [_ZEROS[: offset + length - at]])

    def close(self) -> None:
        self._writer.close()

    def abandon(self) -> None:
        self._writer.abandon()
