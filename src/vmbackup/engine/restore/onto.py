"""A disk restored onto an image or a block device that is there."""

import contextlib
import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from vmbackup.engine.images.begun import Begun, sweep, was_begun
from vmbackup.engine.images.existing_image import DiskUsers, ExistingImage, look_at
from vmbackup.engine.images.image_check import mend, refuse_damaged, refuse_unwritable
from vmbackup.engine.images.image_file import served_image
from vmbackup.engine.images.image_options import ImageWishes, chosen_passphrase
from vmbackup.engine.images.nbd_target import NbdTarget
from vmbackup.engine.images.target_errors import in_use, told
from vmbackup.engine.restore.disk_job import DiskJob, Filled
from vmbackup.engine.restore.savepoints import Savepoints
from vmbackup.errors import TargetError, UsageError
from vmbackup.hypervisor.qemu_secret import QemuSecret
from vmbackup.repository.points import Point
from vmbackup.repository.records import DiskRecord

_NOTES = "restores"  # below the state folder: what is being written, a note for each target


@dataclass(frozen=True)
class Onto:
    """A disk and the image that it goes to: looked at, and fit."""

    disk: DiskRecord
    image: ExistingImage
    passphrase: bytes | None = field(repr=False)

    @property
    def driver(self) -> str:
        """QEMU's driver for the image."""
        return "luks" if self.image.format == "raw" and self.image.encrypted else self.image.format


def choose_target(point: Point, disk: DiskRecord, path: Path, wishes: ImageWishes, users: DiskUsers) -> Onto:
    """The image at `path` for a disk. Raises TargetError where it is in use or too small, NotFoundError, UsageError."""
    _refuse_users(point, path, users)
    image = look_at(path, wishes.format)
    if image.size < disk.virtual_size:
        raise TargetError(
            f"{path} is too small: it has {image.size} bytes, disk {disk.target} has {disk.virtual_size}",
            "make it larger (qemu-img resize, lvextend), or name another",
        )
    passphrase = chosen_passphrase(disk, wishes)
    if passphrase is None and image.encrypted:
        passphrase = wishes.passphrases.get("")
    if (passphrase is not None) != image.encrypted:
        raise _unlike(disk, image)
    image_free(image)
    return Onto(disk, image, passphrase)


def _unlike(disk: DiskRecord, image: ExistingImage) -> UsageError:
    if image.encrypted:
        return UsageError(f"{image.path} is encrypted", "name its passphrase with --luks-passphrase-file FILE")
    return UsageError(
        f"disk {disk.target} is to be encrypted, and {image.path} is not",
        "name an encrypted image, or say --plain to have the disk readable",
    )


def _refuse_users(point: Point, path: Path, users: DiskUsers) -> None:
    """Another guest's disk is never written to, its own guest's while that is off."""
    for user in users(path.resolve()):
        if user.active:
            raise in_use(path, f"it is disk {user.target} of the guest {user.domain}, which runs")
        if user.below:
            raise TargetError(
                f"{path} lies below disk {user.target} of the guest {user.domain}, as its backing file",
                "what is written there would damage that disk: name the disk's own image, or another",
            )
        if user.uuid != point.uuid:
            raise TargetError(
                f"{path} is disk {user.target} of another guest, {user.domain}",
                "take it from that guest first (virsh detach-disk --config), or name another",
            )


def image_free(image: ExistingImage) -> None:
    """Raises TargetError where the kernel works with it."""
    if claim := image.claim():
        claim.release()


def restore_onto(job: DiskJob, onto: Onto, state_dir: Path, seconds: float) -> Filled:
    """Writes the disk; a device takes as many bytes as the disk has.

    An error or a kill leaves the image half written: the same restore, run again, reads what is there and goes on.
    Where nothing was written no note is left. Raises TargetError, DamageError.
    """
    image = onto.image
    begun = Begun(_made_note(state_dir, image.real), image.path, _description(job, image))
    target = None
    try:
        with contextlib.ExitStack() as stack:
            if claim := image.claim():
                stack.callback(claim.release)
            secret = None if onto.passphrase is None else stack.enter_context(QemuSecret(onto.passphrase))
            (mend if begun.again else refuse_damaged)(image.real, onto.driver, secret)
            served = served_image(image.real, onto.driver, encrypted=secret is not None)
            target = NbdTarget(image.real, served, job.workers, secret=secret)
            begun.write()
            filled = _fill(job, target, image, Savepoints(seconds), resume=begun.again)
        begun.remove()
    except BaseException:
        if not begun.again and not (target and target.touched):
            begun.give_up()
        raise
    finally:
        begun.release()
    return filled._replace(written=job.disk.virtual_size) if image.is_device else filled


def _fill(job: DiskJob, target: NbdTarget, image: ExistingImage, savepoints: Savepoints, *, resume: bool) -> Filled:
    if resume:
        job.progress.note(f"{image.path} is half written by the same restore: what is right there is not read again")
    try:
        return job.fill_existing(target, image.size, savepoints, resume=resume)
    except BaseException:
        if resume or target.touched:
            job.progress.note(f"{image.path} is half written: run the same command again to go on")
        raise


def check_onto(job: DiskJob, onto: Onto, state_dir: Path) -> None:
    """Raises TargetError where `restore_onto` would before it writes; changes nothing."""
    image = onto.image
    refuse_unwritable(image.real)
    if was_begun(_note(state_dir, image.real), _description(job, image)):
        return  # half written by the same restore: that one puts it right
    with contextlib.ExitStack() as stack:
        secret = None if onto.passphrase is None else stack.enter_context(QemuSecret(onto.passphrase))
        refuse_damaged(image.real, onto.driver, secret)


def _made_note(state_dir: Path, path: Path) -> Path:
    folder = state_dir / _NOTES
    with told(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    sweep(folder)
    return _note(state_dir, path)


def _note(state_dir: Path, path: Path) -> Path:
    return state_dir / _NOTES / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"


def _description(job: DiskJob, image: ExistingImage) -> dict[str, str]:
    return {**job.description(), "path": str(image.real), "size": str(image.size), "format": image.format}
