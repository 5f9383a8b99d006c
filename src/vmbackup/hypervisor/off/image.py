"""The image of a guest that is off, as QEMU's programs are told of it; bitmaps made and removed in it."""

import json
import os
import shlex
import stat
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vmbackup.errors import HypervisorError, JobConflictError
from vmbackup.hypervisor.disk_element import target_of
from vmbackup.hypervisor.disk_secret import secret_of
from vmbackup.hypervisor.disks import DomainDisk, local_path
from vmbackup.hypervisor.off.writers import refuse_writers
from vmbackup.hypervisor.qemu_secret import KEY_ID, QemuSecret
from vmbackup.hypervisor.xmltree import Element, parse

# Seconds. It writes a header; longer means storage that hangs.
_TIMEOUT = 60.0
_LOCKED = "Is another process using the image"
_DIRECT = 4096  # bytes: the largest block that O_DIRECT asks for


@dataclass(frozen=True)
class OffImage:
    """An image. `driver` is QEMU's; `files` are its own path, those below, and that of its data; `secret` opens it."""

    target: str
    path: str
    driver: str
    files: tuple[str, ...]
    secret: bytes | None = field(default=None, repr=False)

    def name(self, *, shared: bool = False) -> str:
        """As a file name that QEMU's programs take. `shared`: others may write it meanwhile, for reading only."""
        image: dict[str, Any] = {"driver": self.driver, "file": {"driver": _protocol(self.path), "filename": self.path}}
        if shared:
            image["force-share"] = True
        if self.driver == "luks":
            image["key-secret"] = KEY_ID
        elif self.secret is not None:
            image["encrypt"] = {"format": "luks", "key-secret": KEY_ID}
        return f"json:{json.dumps(image)}"

    def caching(self) -> list[str]:
        """How it is read: past the page cache where that can be done, so that a backup does not empty it."""
        try:
            os.close(os.open(self.path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
        except OSError:
            return []
        odd = stat.S_ISREG(os.stat(self.path).st_mode) and os.path.getsize(self.path) % _DIRECT
        return [] if self.driver == "raw" and odd else ["--cache=none", "--aio=native"]

    def add_bitmap(self, name: str) -> None:
        """A bitmap that records from now on. Raises HypervisorError, JobConflictError where the image is in use."""
        self._run("bitmap", "--add", name)

    def remove_bitmap(self, name: str) -> None:
        """Takes one away, sound or not. Raises as `add_bitmap`."""
        self._run("bitmap", "--remove", name)

    @property
    def devices(self) -> tuple[str, ...]:
        """Those of its files that are block devices."""
        return tuple(path for path in self.files if Path(path).is_block_device())

    def _run(self, command: str, option: str, name: str) -> None:
        refuse_writers(self.path)
        with ExitStack() as stack:
            secret = stack.enter_context(QemuSecret(self.secret)) if self.secret is not None else None
            arguments = ["qemu-img", command, option, *(secret.arguments if secret else ()), "--", self.name(), name]
            fds = (secret.fd,) if secret else ()
            try:
                done = subprocess.run(
                    arguments, capture_output=True, text=True, timeout=_TIMEOUT, check=False, pass_fds=fds
                )
            except FileNotFoundError:
                raise HypervisorError("the program qemu-img is missing", "apt install qemu-utils") from None
            except subprocess.TimeoutExpired as error:
                raise HypervisorError(f"{self.path} cannot be written: no answer in {_TIMEOUT:.0f} s") from error
        if done.returncode:
            raise refused(self.path, done.stderr)


def refused(path: str, said: str) -> HypervisorError:
    """What a program of QEMU said of an image that it did not open."""
    if _LOCKED in said:
        return JobConflictError(f"{path} is in use, by another guest or program", f"'fuser -v {path}' names it")
    if "Invalid password" in said:
        return HypervisorError(f"the secret that libvirt has for {path} does not open it", "see 'virsh secret-list'")
    lines = said.strip().splitlines() or ["it said nothing"]
    return HypervisorError(f"QEMU's tools cannot open {path}: {lines[-1].partition(': ')[2] or lines[-1]}")


def off_images(raw: Any, domain: Any, disks: Sequence[DomainDisk]) -> dict[str, OffImage]:
    """How to open these disks of a guest that is off, by target. Raises HypervisorError where one cannot be."""
    entries = {target_of(entry): entry for entry in parse(domain.XMLDesc(0)).findall("./devices/disk")}
    return {disk.target: _image(raw, domain.name(), entries[disk.target], disk) for disk in disks}


def _image(raw: Any, name: str, entry: Element, disk: DomainDisk) -> OffImage:
    if disk.closed:
        gone = not disk.chain and bool(local_path(raw, entry))
        raise _cannot(name, disk.target, disk.closed, "the guest cannot start without it either" if gone else "")
    data = disk.info.attributes.get("data_file")
    files = (*(image.path for image in disk.chain), *([data] if data else []))
    image = OffImage(disk.target, disk.info.path, disk.info.format, files)
    try:
        secret = secret_of(raw, entry)
    except HypervisorError as error:
        raise _cannot(name, disk.target, error.message) from error
    if secret is None:
        return image
    return replace(image, driver="luks" if disk.info.format == "raw" else disk.info.format, secret=secret)


def _cannot(name: str, target: str, why: str, hint: str = "") -> HypervisorError:
    # It need not run: its QEMU is all that is needed.
    domain = shlex.quote(name)
    paused = f"virsh start --paused {domain}; vmbackup backup {domain}; virsh destroy {domain}"
    return HypervisorError(
        f"domain {name} is off, and its disk {target} cannot be read: {why}",
        hint or f"back it up while it runs, or stands still: {paused}",
    )


def _protocol(path: str) -> str:
    return "host_device" if stat.S_ISBLK(os.stat(path).st_mode) else "file"
