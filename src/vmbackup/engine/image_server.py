"""An image that is there already, held and written through a qemu-nbd of ours."""

import os
import stat
from pathlib import Path

from vmbackup.engine.local_image import MappedImage, ServedImage
from vmbackup.engine.qcow2_target import NbdWriter
from vmbackup.engine.qemu_img import run_tool
from vmbackup.engine.qemu_nbd import QemuNbd
from vmbackup.engine.target_errors import nbd_error, told
from vmbackup.engine.targets import Writer
from vmbackup.errors import TargetError
from vmbackup.nbd.errors import NbdError

FORMATS = ("qcow2", "raw")
_DIRECT = 4096  # bytes: the largest block that O_DIRECT asks for
_SPARE = 4  # connections beside those of the workers, which read and write


class ImageServer:
    """Holds QEMU's lock of the image from here to `end`: no guest starts on it, and no other tool of QEMU writes it.

    A Target of DiskCopy too. `bitmap` is told of over NBD; all bitmaps of the image go on recording.
    """

    def __init__(
        self, path: Path, image_format: str, workers: int, *, bitmap: str | None = None, read_only: bool = False
    ) -> None:
        if image_format not in FORMATS:
            raise TargetError(f"{path} is a {image_format} image: only qcow2 and raw ones are written in place")
        self.path, self.format, self.read_only = path, image_format, read_only
        options = [f"--format={image_format}", "--discard=unmap", *_caching(path, image_format)]
        options += ["--read-only"] if read_only else []
        options += [f"--bitmap={bitmap}"] if bitmap else []
        try:
            self.nbd = QemuNbd(path, [*options, str(path)], 2 * workers + _SPARE)
        except TargetError as error:
            if "lock" in error.message:
                raise in_use(path) from error
            raise
        self._image: ServedImage | None = None

    def image(self, *, mapped: bool) -> ServedImage:
        """The image for reading; `mapped`: out of its file as far as possible, all of it in order."""
        if self._image is not None:
            self._image.close()
        self._image = MappedImage(self.path, self.format, self.nbd) if mapped else ServedImage(self.path, self.nbd)
        return self._image

    def open_writer(self) -> Writer:
        """See Target."""
        return NbdWriter(self.nbd.connect(), self.path)

    def flush(self) -> None:
        """All that was written is durable when this returns."""
        client = self.nbd.connect()
        try:
            client.flush()
        except NbdError as error:
            raise nbd_error(self.path, error) from error
        finally:
            client.close()

    def finish(self) -> int:
        """Flushes, ends qemu-nbd and lets the image go; gives the bytes that it takes on its file system."""
        self.flush()
        self._close_image()
        self.nbd.end()
        with told(self.path):
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
                taken = os.fstat(fd).st_blocks * 512
            finally:
                os.close(fd)
        self.abandon()
        return taken

    def abandon(self) -> None:
        """Ends qemu-nbd. Never raises."""
        self._close_image()
        self.nbd.abandon()

    def _close_image(self) -> None:
        if self._image is not None:
            self._image.close()
            self._image = None


def _caching(path: Path, image_format: str) -> list[str]:
    """Past the page cache, but for a raw file whose size QEMU could not write so."""
    if image_format == "raw" and not is_device(path) and path.stat().st_size % _DIRECT:
        return ["--cache=writeback"]
    return ["--cache=none", "--aio=native"]


def in_use(path: Path) -> TargetError:
    """Somebody else holds the image."""
    return TargetError(f"{path} is in use by another program", "stop the guest or the tool that has it open")


def is_device(path: Path) -> bool:
    """Whether it is a block device, whose size nobody changes. Raises TargetError where there is nothing."""
    try:
        return stat.S_ISBLK(path.stat().st_mode)
    except OSError as error:
        raise TargetError(f"cannot open {path}: {error.strerror}") from error


def resize(path: Path, image_format: str, size: int) -> None:
    """Makes an image that nobody has open as large as `size`, zeros where it grows. Raises TargetError."""
    run_tool(["qemu-img", "resize", "-q", "-f", image_format, "--shrink", str(path), str(size)], path)
