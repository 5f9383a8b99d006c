"""How QEMU's programs are told of an image: its driver, how its bytes are cached, its key."""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

from vmbackup.engine.images.image_options import ImageOptions
from vmbackup.engine.images.target_errors import told
from vmbackup.hypervisor.qemu_secret import KEY_ID

_DIRECT = 4096  # bytes: the largest block that O_DIRECT asks for


def image_name(path: Path, driver: str, *, encrypted: bool = False) -> str:
    """The image as a file name that QEMU's programs take: nothing is guessed from its content."""
    kind = "host_device" if stat.S_ISBLK(path.stat().st_mode) else "file"
    image: dict[str, Any] = {"driver": driver, "file": {"driver": kind, "filename": str(path)}}
    if driver == "luks":
        image["key-secret"] = KEY_ID
    elif encrypted:
        image["encrypt"] = {"format": "luks", "key-secret": KEY_ID}
    return f"json:{json.dumps(image)}"


def served_image(path: Path, driver: str, *, encrypted: bool = False) -> list[str]:
    """What tells qemu-nbd of an image that it writes."""
    cache = ["--cache=writeback"] if _is_odd(path, driver) else caching(path)
    return [*cache, "--discard=unmap", image_name(path, driver, encrypted=encrypted)]


def _is_odd(path: Path, driver: str) -> bool:
    """A raw file whose size is no multiple of what O_DIRECT writes: QEMU refuses to write it so."""
    found = path.stat()
    return driver != "qcow2" and stat.S_ISREG(found.st_mode) and found.st_size % _DIRECT != 0


def caching(path: Path) -> list[str]:
    """How qemu-nbd caches what it writes there.

    The page cache would cost more CPU than the write, and make the final sync long; tmpfs and others have no other way.
    """
    if serves_directly(path):
        return ["--cache=none", "--aio=native"]
    return ["--cache=writeback", "--aio=threads"]


def serves_directly(path: Path) -> bool:
    """Whether its file system reads and writes past the page cache. Raises TargetError."""
    with told(path):
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
    return True


def create_options(options: ImageOptions) -> list[str]:
    """qemu-img's options for a new image."""
    chosen = dict(options.create)
    if options.preallocation != "off":
        chosen["preallocation"] = options.preallocation
    if options.driver == "luks":
        chosen["key-secret"] = KEY_ID
    elif options.passphrase is not None:
        chosen |= {"encrypt.format": "luks", "encrypt.key-secret": KEY_ID}
    listed = ",".join(f"{name}={value}" for name, value in chosen.items())
    return ["-f", options.driver, *(["-o", listed] if listed else [])]
