"""A new qcow2 image as the target of a restore, its clusters written past QEMU (docs/adr/0012-direct-images.md)."""

import os
from collections.abc import Sequence
from pathlib import Path

from vmbackup.engine.images.direct_file import DirectFile, DirectWriter
from vmbackup.engine.images.image_file import image_name
from vmbackup.engine.images.qcow2_layout import Qcow2Layout
from vmbackup.engine.images.qemu_img import run_tool
from vmbackup.engine.images.target_errors import told
from vmbackup.engine.images.targets import WRITE_BYTES, Writer

_ZEROS = bytes(WRITE_BYTES)


class DirectQcow2Target:
    """An empty image that qemu-img has made; each part of it is expected before it is written."""

    def __init__(self, file: DirectFile, layout: Qcow2Layout) -> None:
        self._file, self._layout = file, layout

    @classmethod
    def of(cls, path: Path) -> "DirectQcow2Target | None":
        """None for an image that QEMU must write: encrypted, with space reserved, or of a kind that is not usual."""
        file = DirectFile(path)
        try:
            with told(path):
                layout = Qcow2Layout.of(file.fd)
        except BaseException:
            file.close()
            raise
        if layout is None:
            file.close()
            return None
        return cls(file, layout)

    def open_writer(self) -> Writer:
        """All threads share the file."""
        return _DirectQcow2Writer(self._file, self._layout)

    def expect(self, offset: int, length: int) -> None:
        """See Target."""
        with told(self._file.path):
            self._layout.place(offset, length)

    def sync(self) -> None:
        """See Target."""
        with told(self._file.path):
            self._layout.flush()
            os.fdatasync(self._file.fd)

    def finish(self) -> int:
        """Writes the tables, syncs, and lets QEMU check that it understands them as they are meant."""
        path = self._file.path
        with told(path):
            self._layout.finish()
            os.fsync(self._file.fd)
        taken = os.fstat(self._file.fd).st_blocks * 512
        self.abandon()
        run_tool(["qemu-img", "check", "-q", image_name(path, "qcow2")], path)
        return taken

    def abandon(self) -> None:
        """Closes the file."""
        self._file.close()


class _DirectQcow2Writer:
    def __init__(self, file: DirectFile, layout: Qcow2Layout) -> None:
        self._file, self._layout, self._writer = file, layout, DirectWriter(file)

    def write(self, offset: int, pieces: Sequence[bytes]) -> None:
        places = list(self._layout.find(offset, sum(map(len, pieces))))
        if len(places) == 1:
            self._writer.write(places[0][0], pieces)
            return
        data, done = memoryview(b"".join(pieces)), 0
        for place, length in places:
            self._writer.write(place, [data[done : done + length]])
            done += length

    def read_into(self, offset: int, buffer: memoryview) -> None:
        done = 0
        for place, length in self._layout.find(offset, len(buffer)):
            self._file.read_into(place, buffer[done : done + length])
            done += length

    def zero(self, offset: int, length: int) -> None:
        for at in range(offset, offset + length, WRITE_BYTES):
            self.write(at, [_ZEROS[: offset + length - at]])

    def close(self) -> None:
        self._writer.close()

    def abandon(self) -> None:
        self._writer.abandon()
