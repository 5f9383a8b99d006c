"""An image of a guest, held, read and written through a qemu-nbd of ours."""

from pathlib import Path

from vmbackup.engine.images.image_file import image_name, served_image
from vmbackup.engine.images.local_image import MappedImage, ServedImage
from vmbackup.engine.images.nbd_target import NbdTarget
from vmbackup.engine.images.qemu_img import has_data_file, run_tool
from vmbackup.hypervisor.qemu_secret import QemuSecret

_EACH, _SPARE = 4, 4  # connections a worker, which compares and writes, and beside


class ImageServer(NbdTarget):
    """Holds QEMU's lock of the image until `finish`: no guest starts on it, and no other tool of QEMU writes it.

    `driver`: QEMU's, as qcow2. `bitmap` is told of over NBD; all bitmaps of the image go on recording.
    """

    def __init__(
        self,
        path: Path,
        driver: str,
        workers: int,
        *,
        secret: QemuSecret | None = None,
        bitmap: str | None = None,
        read_only: bool = False,
    ) -> None:
        options = [*(["--read-only"] if read_only else []), *([f"--bitmap={bitmap}"] if bitmap else [])]
        served = served_image(path, driver, encrypted=secret is not None)
        super().__init__(path, [*options, *served], _EACH * workers + _SPARE, secret=secret)
        self.driver, self.read_only = driver, read_only
        self._encrypted = secret is not None
        self._image: ServedImage | None = None

    def image(self, *, mapped: bool) -> ServedImage:
        """The image for reading; `mapped`: all of it in order, out of its own file as far as possible."""
        self._close_image()
        if mapped and not self._encrypted and not self._has_data_file():
            self._image = MappedImage(self.path, self.driver, self.nbd)
        else:
            self._image = ServedImage(self.path, self.nbd)
        return self._image

    def _has_data_file(self) -> bool:
        """Whether its data lies in another file: the offsets that QEMU tells are of that one."""
        return self.driver == "qcow2" and has_data_file(self.path)

    def finish(self) -> int:
        """Flushes, ends qemu-nbd and lets the image go; gives the bytes that it takes on its file system."""
        self._close_image()
        return super().finish()

    def abandon(self) -> None:
        """Ends qemu-nbd. Never raises."""
        self._close_image()
        super().abandon()

    def _close_image(self) -> None:
        if self._image is not None:
            self._image.close()
            self._image = None


def resize(path: Path, driver: str, size: int, secret: QemuSecret | None) -> None:
    """Makes an image that nobody has open as large as `size`, zeros where it grows. Raises TargetError."""
    command = ["qemu-img", "resize", "-q", "--shrink", *(secret.arguments if secret else ())]
    command += [image_name(path, driver, encrypted=secret is not None), str(size)]
    run_tool(command, path, fds=(secret.fd,) if secret else ())
