"""An image that is to be written: whether it may be, and is sound; what a killed writer left is put right."""

import errno
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from vmbackup.engine.images.image_file import image_name
from vmbackup.engine.images.qemu_img import run_tool
from vmbackup.engine.images.qemu_nbd import LOCKED
from vmbackup.errors import TargetError
from vmbackup.hypervisor.qemu_secret import QemuSecret

# The killed restore's qemu-nbd ends with it, but not at the same instant.
_LOCKED_SECONDS = 10.0
_POLL_SECONDS = 0.05
_SOUND = (0, 3)  # exit codes of qemu-img check: no errors, clusters that nothing uses


def mend(path: Path, driver: str, secret: QemuSecret | None, sleep: Callable[[float], None] = time.sleep) -> None:
    """Frees clusters that nothing names, and what else qemu-img repairs. Raises TargetError."""
    if driver == "qcow2":
        _check(path, secret, sleep)


def refuse_damaged(path: Path, driver: str, secret: QemuSecret | None) -> None:
    """Raises TargetError for an image whose tables are damaged: a write to it could destroy other data."""
    if driver != "qcow2":
        return
    command = ["qemu-img", "check", "-q", *(secret.arguments if secret else ())]
    command.append(image_name(path, driver, encrypted=secret is not None))
    done = subprocess.run(
        command, capture_output=True, check=False, text=True, stdin=subprocess.DEVNULL,
        pass_fds=(secret.fd,) if secret else (),
    )  # fmt: skip
    # A lock or a wrong passphrase is told by who opens it next.
    if done.returncode not in _SOUND and not any(why in done.stderr for why in (" lock", "Invalid password")):
        told = (done.stderr.strip().splitlines() or ["qemu-img check fails"])[-1]
        raise TargetError(f"the image {path} is damaged: {told}", "restore to a new image with --output")


def refuse_unwritable(path: Path) -> None:
    """Raises TargetError where this user may not write the image; a device is not opened, which may have effects."""
    try:
        if path.is_block_device():
            if not os.access(path, os.W_OK, effective_ids=True):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        else:
            os.close(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
    except OSError as error:
        hint = "look at its attributes (lsattr) and its file system"
        raise TargetError(f"cannot write {path}: {error.strerror}", hint) from error


def _check(path: Path, secret: QemuSecret | None, sleep: Callable[[float], None]) -> None:
    command = ["qemu-img", "check", "-q", "-r", "all", *(secret.arguments if secret else ())]
    command.append(image_name(path, "qcow2", encrypted=secret is not None))
    deadline = time.monotonic() + _LOCKED_SECONDS
    while True:
        try:
            run_tool(command, path, fds=(secret.fd,) if secret else ())
        except TargetError as error:
            if LOCKED not in error.message or time.monotonic() > deadline:
                raise
        else:
            return
        sleep(_POLL_SECONDS)
