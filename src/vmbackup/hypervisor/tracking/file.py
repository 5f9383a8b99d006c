"""The qcow2 that tracks a raw file or device: it holds bitmaps, and every byte of the data stays where it is.

`qemu-img create` empties the data file that it is given, so the qcow2 is made over a temporary one and pointed at the
real one afterwards (facts of QEMU 7.2 and 10.0).
"""

import contextlib
import errno
import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmbackup.durable import sync_folder
from vmbackup.errors import HypervisorError
from vmbackup.hypervisor.images import run_tool

SECTOR = 512
_LOOKS, _LOOK_BYTES = 256, 64 << 10  # what is read of the data before and after: 16 MiB at most
_LEFT = ".partial"
_PIECE = 1 << 20


@dataclass(frozen=True)
class DataFile:
    """A raw file or device as it was looked at. `modified` is None for a device. `digest`: of places all over it."""

    path: Path
    size: int
    modified: int | None
    digest: bytes

    @classmethod
    def look(cls, path: Path) -> "DataFile":
        """Reads it at up to 256 places. Raises HypervisorError."""
        try:
            with path.open("rb", buffering=0) as file:
                found = os.fstat(file.fileno())
                size = file.seek(0, os.SEEK_END)
                digest = _digest(file.fileno(), size)
        except OSError as error:
            raise HypervisorError(f"{path} cannot be read: {error.strerror}") from error
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISBLK(found.st_mode):
            raise HypervisorError(f"{path} is neither a file nor a block device")
        if not size or size % SECTOR:
            raise HypervisorError(
                f"{path} has {size} bytes, which is no number of sectors of {SECTOR} bytes",
                f"make it longer, with the guest off: truncate -s %{SECTOR} {path}",
            )
        return cls(path, size, found.st_mtime_ns if stat.S_ISREG(found.st_mode) else None, digest)


def make(place: Path, data: DataFile) -> None:
    """Writes the qcow2 for that data, under its name only when it is whole. Raises HypervisorError.

    A file of that name that tracks the same data is made anew; any other is refused by `check_free`.
    """
    making, stand_in = place.with_name(place.name + _LEFT), place.with_name(place.name + ".data" + _LEFT)
    try:
        for old in (making, stand_in):
            old.unlink(missing_ok=True)
        with stand_in.open("xb") as file:
            file.truncate(data.size)
        options = f"data_file={_escaped(stand_in)},data_file_raw=on"
        _qemu_img("create", "-q", "-f", "qcow2", "-o", options, "--", str(making), str(data.size))
        _qemu_img("amend", "-q", "-f", "qcow2", "-o", f"data_file={_escaped(data.path)}", "--", str(making))
        verify(making, data)
        _own(making, data.path)
        making.replace(place)
        sync_folder(place.parent)
    except OSError as error:
        raise HypervisorError(f"{place} cannot be made: {error.strerror}", "say --metadata PATH") from error
    finally:
        for left in (making, stand_in):
            with contextlib.suppress(OSError):
                left.unlink()


def check_free(place: Path, data: Path) -> None:
    """Nothing is at `place`, or a qcow2 that tracks the same data and is nobody's. Raises HypervisorError."""
    if not place.parent.is_dir():
        raise HypervisorError(f"there is no folder {place.parent}", "say --metadata PATH with a folder that is there")
    if os.path.lexists(place) and tracked_data(place) != data:
        raise HypervisorError(f"{place} is there already", "take it away, or say --metadata PATH")


def tracked_data(place: Path) -> Path | None:
    """The data that a tracking qcow2 names; None where it is something else."""
    if place.is_symlink() or not place.is_file():
        return None
    try:
        info = json.loads(_qemu_img("info", "-U", "--output=json", "-f", "qcow2", "--", str(place)))
    except HypervisorError:
        return None
    found: dict[str, Any] = info.get("format-specific", {}).get("data", {})
    if not found.get("data-file-raw") or info.get("backing-filename"):
        return None
    return Path(found["data-file"])


def verify(place: Path, data: DataFile) -> None:
    """Each byte that a guest sees through the qcow2 is that of the data at the same offset. Raises HypervisorError."""
    if tracked_data(place) != data.path:
        raise HypervisorError(f"{place} does not name {data.path} as its raw data")
    extents = json.loads(_qemu_img("map", "--output=json", "-f", "qcow2", "--", str(place)))
    at = 0
    for extent in extents:
        if extent["start"] != at or not _shows(extent, data.path):
            raise HypervisorError(f"{place} does not show {data.path} as it is, at byte {at}")
        at += extent["length"]
    if at != data.size:
        raise HypervisorError(f"{place} shows {at} bytes of {data.path}, which has {data.size}")
    if DataFile.look(data.path) != data:
        raise HypervisorError(f"{data.path} changed while it was worked with", "is another program writing to it?")


def _shows(extent: dict[str, Any], data: Path) -> bool:
    """Whether a part of the qcow2 is what the data has there: that itself, or zeros where it has zeros."""
    if extent["zero"]:
        return _is_zero(data, extent["start"], extent["length"])
    return bool(extent["data"]) and extent.get("offset") == extent["start"]


def _is_zero(data: Path, start: int, length: int) -> bool:
    end = start + length
    with data.open("rb", buffering=0) as file:
        while (start := _next_data(file.fileno(), start, end)) < end:
            piece = os.pread(file.fileno(), min(_PIECE, end - start), start)
            if piece.count(0) < len(piece):
                return False
            start += len(piece) or _PIECE
    return True


def _next_data(handle: int, start: int, end: int) -> int:
    """The first byte from `start` on that is in no hole, `end` where there is none."""
    try:
        return os.lseek(handle, start, os.SEEK_DATA)
    except OSError as error:
        return end if error.errno == errno.ENXIO else start  # a device knows no holes


def compare(place: Path, data: Path) -> None:
    """Reads both, whole. Raises HypervisorError at the first byte that differs."""
    _qemu_img("compare", "-f", "qcow2", "-F", "raw", "--", str(place), str(data))


def _digest(handle: int, size: int) -> bytes:
    total = hashlib.sha256()
    step = max(size // _LOOKS, _LOOK_BYTES)
    for offset in (*range(0, size, step), max(size - _LOOK_BYTES, 0)):
        total.update(os.pread(handle, _LOOK_BYTES, offset))
    return total.digest()


def _own(path: Path, like: Path) -> None:
    """Readable for who may read the data, and on disk."""
    found = like.stat()
    handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if stat.S_ISREG(found.st_mode):
            os.fchown(handle, found.st_uid, found.st_gid)
            os.fchmod(handle, stat.S_IMODE(found.st_mode) & 0o666)
        else:
            os.fchmod(handle, 0o600)
        os.fsync(handle)
    finally:
        os.close(handle)


def _escaped(path: Path) -> str:
    """As qemu-img wants a value between commas."""
    return str(path).replace(",", ",,")


def _qemu_img(*arguments: str) -> str:
    """For as long as it takes: a map or a comparison is as long as the disk."""
    return run_tool(["qemu-img", *arguments], timeout=None)
