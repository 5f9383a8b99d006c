"""A new image as the target of a restore, written through qemu-nbd by several connections: qcow2, or LUKS."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from vmbackup.engine.images.image_check import mend
from vmbackup.engine.images.image_file import create_options, served_image, serves_directly
from vmbackup.engine.images.image_options import ImageOptions
from vmbackup.engine.images.nbd_target import NbdTarget
from vmbackup.engine.images.qemu_img import run_tool
from vmbackup.engine.images.reserved_space import GrowingFile
from vmbackup.engine.images.target_errors import told
from vmbackup.errors import TargetError
from vmbackup.hypervisor.qemu_secret import QemuSecret

_CLUSTER = 65536  # bytes, QEMU's own choice
# QEMU measures how long a key takes, and gives up where it used less CPU time than its host counts: some tries do.
_NO_TIME, _TRIES = "Unable to get accurate CPU usage", 20


class Qcow2Target(NbdTarget):
    """A new image with the options of the original."""

    def __init__(self, path: Path, size: int, options: ImageOptions, connections: int, *, resume: bool = False) -> None:
        """`resume`: the image is there, and stays as it is; where it cannot be mended, it is made anew."""
        with contextlib.ExitStack() as stack:
            secret = None if options.passphrase is None else stack.enter_context(QemuSecret(options.passphrase))
            if not (resume and _mended(path, options, secret)):
                make_image(path, size, options, secret)
            image = served_image(path, options.driver, encrypted=secret is not None)
            super().__init__(path, image, connections, secret=secret)
        # Written in order, one cluster behind the other, by QEMU's qcow2 only.
        grows = options.driver == "qcow2" and options.preallocation == "off" and serves_directly(path)
        self._space = GrowingFile(path, int(options.create.get("cluster_size", _CLUSTER))) if grows else None

    def expect(self, offset: int, length: int) -> None:  # noqa: ARG002  as the Protocol has it
        """See Target."""
        if self._space:
            self._space.expect(length)

    def trim(self) -> None:
        """See NbdTarget."""
        if self._space:
            self._space.trim()

    def abandon(self) -> None:
        """Ends qemu-nbd."""
        super().abandon()
        if self._space:
            self._space.close()


def make_image(path: Path, size: int, options: ImageOptions, secret: QemuSecret | None) -> None:
    """An empty image, for its owner only. Raises TargetError."""
    with told(path):
        path.unlink(missing_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    for left in reversed(range(_TRIES)):
        try:
            _run(["create", "-q"], [*create_options(options), str(path), str(size)], path, secret)
            return
        except TargetError as error:
            if not left or _NO_TIME not in error.message:
                raise


def _mended(path: Path, options: ImageOptions, secret: QemuSecret | None) -> bool:
    """Whether the image that a killed restore left is sound now."""
    try:
        mend(path, options.driver, secret)
    except TargetError:
        return False
    return True


def _run(command: Sequence[str], rest: Sequence[str], path: Path, secret: QemuSecret | None) -> None:
    arguments = secret.arguments if secret else []
    run_tool(["qemu-img", *command, *arguments, *rest], path, fds=(secret.fd,) if secret else ())
