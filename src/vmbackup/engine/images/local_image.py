"""An image of this host that is compared with a restore point: where it has data, and the data."""

import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from vmbackup.engine.images.qemu_nbd import QemuNbd
from vmbackup.errors import TargetError
from vmbackup.nbd import protocol
from vmbackup.nbd.errors import NbdError
from vmbackup.nbd.extents import Kind, extents

_UNKNOWN = -1
_PIECE = 1 << 20  # bytes read at a time where nothing but zeros is looked for
_BLOCK = 4096  # bytes: what O_DIRECT wants places in file and memory to be multiples of


class Region(NamedTuple):
    """A part of a disk, in bytes. `host`: where its data lies in the image's own file, -1 where it does not."""

    offset: int
    length: int
    zero: bool
    host: int = _UNKNOWN


class RegionReader(Protocol):
    """One thread's way to the data."""

    def read(self, region: Region, buffer: memoryview) -> None:
        """Fills the buffer, which is as long as the region, from a region that is not zero. Raises TargetError."""

    def close(self) -> None:
        """Ends it. Never raises."""


class LocalImage(Protocol):
    """An image that nobody else may write meanwhile."""

    size: int

    def regions(self, start: int, end: int) -> Iterator[Region]:
        """Its parts from `start` to `end`, in order and without a gap. Raises TargetError."""

    def open_reader(self) -> RegionReader:
        """For one thread."""


class ServedImage:
    """An image, whatever its format and what lies below it, read through its qemu-nbd."""

    def __init__(self, path: Path, nbd: QemuNbd) -> None:
        self.path, self._nbd = path, nbd
        self._status = nbd.connect((protocol.BASE_ALLOCATION,))
        self.size = self._status.size

    def regions(self, start: int, end: int) -> Iterator[Region]:
        """See LocalImage."""
        with reading(self.path):
            for run in extents(self._status, None, start, end, None):
                yield Region(run.offset, run.length, run.kind is Kind.ZERO)

    def open_reader(self) -> RegionReader:
        """See LocalImage."""
        return _ServedReader(self.path, self._nbd)

    def close(self) -> None:
        """Ends its connection. Never raises."""
        self._status.close()


class _ServedReader:
    def __init__(self, path: Path, nbd: QemuNbd) -> None:
        self._path, self._client = path, nbd.connect()

    def read(self, region: Region, buffer: memoryview) -> None:
        with reading(self._path):
            self._client.read_into(region.offset, buffer)

    def close(self) -> None:
        self._client.close()


class MappedImage(ServedImage):
    """An image whose own data is read out of its file, where QEMU says that it lies: with half the work.

    What lies elsewhere (a backing file) or otherwise (compressed) is read through qemu-nbd.
    """

    def __init__(self, path: Path, image_format: str, nbd: QemuNbd) -> None:
        super().__init__(path, nbd)
        self._format = image_format
        with reading(path):
            self._fds = (os.open(path, os.O_RDONLY | os.O_CLOEXEC), _open_direct(path))

    def regions(self, start: int, end: int) -> Iterator[Region]:
        """See LocalImage."""
        if start == end:
            return
        command = ["qemu-img", "map", "-U", "--output=json", "-f", self._format]
        command += [f"--start-offset={start}", f"--max-length={end - start}", str(self.path)]
        at = start
        with reading(self.path), subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            try:
                for line in process.stdout or ():
                    if text := line.strip(b"[],\n "):
                        region = _region(json.loads(text))
                        if region.offset != at or region.offset + region.length > end:
                            raise TargetError(f"qemu-img's map of {self.path} has a gap at byte {at}")
                        at += region.length
                        yield region
                said = process.stderr.read().decode(errors="replace").strip() if process.stderr else ""
            finally:
                process.kill()
        if at != end:
            raise TargetError(f"qemu-img cannot map {self.path}: {said or f'it ends at byte {at} of {end}'}")

    def open_reader(self) -> RegionReader:
        """See LocalImage."""
        return _MappedReader(self.path, self._fds, super().open_reader)

    def close(self) -> None:
        """Closes the file too."""
        super().close()
        for fd in self._fds:
            if fd >= 0:
                os.close(fd)


class _MappedReader:
    """What lies in the page cache is taken from there; all else is read past it, for a tenth of the CPU."""

    def __init__(self, path: Path, fds: tuple[int, int], open_served: Callable[[], RegionReader]) -> None:
        self._path, self._open_served = path, open_served
        self._cached, self._direct = fds
        self._served: RegionReader | None = None

    def read(self, region: Region, buffer: memoryview) -> None:
        if region.host == _UNKNOWN:
            self._served = self._served or self._open_served()
            self._served.read(region, buffer)
            return
        done = 0
        with reading(self._path):
            while done < len(buffer):
                aligned = not (region.offset + done) % _BLOCK
                count = self._some(buffer[done:], region.host + done, aligned=aligned)
                if not count:  # the file's last cluster may be cut short
                    buffer[done:] = bytes(len(buffer) - done)
                    return
                done += count

    def _some(self, view: memoryview, offset: int, *, aligned: bool) -> int:
        """Reads at least a byte, unless the file ends. `aligned`: the memory is fit for O_DIRECT."""
        try:
            return os.preadv(self._cached, [view], offset, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP):
                raise
        if aligned and self._direct >= 0 and not offset % _BLOCK and not len(view) % _BLOCK:
            return os.preadv(self._direct, [view], offset)
        return os.preadv(self._cached, [view], offset)

    def close(self) -> None:
        if self._served is not None:
            self._served.close()


def _open_direct(path: Path) -> int:
    """For reads past the page cache; -1 where the file system has none (tmpfs)."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return -1


def _region(entry: dict[str, int | bool]) -> Region:
    own = entry["depth"] == 0 and entry["data"] and not entry.get("compressed")
    host = int(entry.get("offset", _UNKNOWN)) if own else _UNKNOWN
    return Region(int(entry["start"]), int(entry["length"]), bool(entry["zero"]), host)


class Regions:
    """The parts of an image, asked for in order; zeros beyond its end."""

    def __init__(self, found: Iterator[Region]) -> None:
        self._found = found
        self._current: Region | None = next(found, None)

    def take(self, start: int, end: int) -> Iterator[Region]:
        """The parts from `start`, where the last call ended or later, to `end`."""
        while start < end:
            while self._current is not None and self._current.offset + self._current.length <= start:
                self._current = next(self._found, None)
            if self._current is None:
                yield Region(start, end - start, zero=True)
                return
            current = self._current
            skip = start - current.offset
            length = min(current.offset + current.length, end) - start
            host = current.host + skip if current.host != _UNKNOWN else _UNKNOWN
            yield Region(start, length, current.zero, host)
            start += length


def fill(buffer: memoryview, start: int, regions: Sequence[Region], reader: RegionReader) -> None:
    """Puts what the image has from `start` on into the buffer; zeros where it has no region."""
    done = 0
    for region in regions:
        at = region.offset - start
        if region.zero:
            buffer[at : at + region.length] = bytes(region.length)
        else:
            reader.read(region, buffer[at : at + region.length])
        done = at + region.length
    if done < len(buffer):
        buffer[done:] = bytes(len(buffer) - done)


def has_data(image: LocalImage, start: int, end: int) -> bool:
    """Whether a part of an image is anything but zeros. Raises TargetError."""
    buffer = bytearray(_PIECE)
    reader = image.open_reader()
    try:
        for region in image.regions(start, end):
            for at in range(0, 0 if region.zero else region.length, _PIECE):
                length = min(_PIECE, region.length - at)
                with memoryview(buffer)[:length] as view:
                    reader.read(Region(region.offset + at, length, zero=False), view)
                if buffer.count(0, 0, length) != length:
                    return True
    finally:
        reader.close()
    return False


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Failures of reading an image in this block become TargetError."""
    try:
        yield
    except NbdError as error:
        raise TargetError(f"cannot read {path}: {error}") from error
    except FileNotFoundError as error:
        if error.filename == "qemu-img":
            raise TargetError("qemu-img is not installed", "apt install qemu-utils") from None
        raise TargetError(f"cannot read {path}: {error.strerror}") from error
    except OSError as error:
        raise TargetError(f"cannot read {path}: {error.strerror}") from error
