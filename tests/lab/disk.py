"""A disk of a lab domain: its image and its element in the domain XML."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import quoteattr

from . import machine

MiB = 1 << 20
GiB = 1 << 30
TiB = 1 << 40


@dataclass(frozen=True)
class Disk:
    """What a disk shall be. Sizes in bytes; images are sparse, so 4 TiB cost nothing."""

    target: str = "vda"
    size: int = 64 * MiB
    format: str = "qcow2"
    cluster_size: int = 65536
    compat: str = "1.1"
    discard: str | None = "unmap"
    bus: str = "virtio"
    options: Sequence[str] = ()
    """More options of qemu-img create's -o, such as "lazy_refcounts=on"."""

    def create(self, path: Path, *, backing: Path | None = None) -> None:
        """Makes the image, owned by QEMU's user. `backing` is a qcow2 image below it."""
        command = [machine.program("qemu-img"), "create", "-q", "-f", self.format]
        if self.format == "qcow2":
            options = [f"cluster_size={self.cluster_size}", f"compat={self.compat}", *self.options]
            command += ["-o", ",".join(options)]
        if backing is not None:
            command += ["-b", str(backing), "-F", "qcow2"]
        subprocess.run([*command, str(path), str(self.size)], check=True, capture_output=True, text=True)
        os.chown(path, *machine.qemu_user())

    def xml(self, path: Path, *, serial: str | None = None) -> str:
        """The <disk> element."""
        discard = f" discard={quoteattr(self.discard)}" if self.discard else ""
        return (
            f"<disk type='file' device='disk'><driver name='qemu' type='{self.format}'{discard}/>"
            f"<source file={quoteattr(str(path))}/><target dev='{self.target}' bus='{self.bus}'/>"
            + (f"<serial>{serial}</serial>" if serial else "")
            + "</disk>"
        )


def same_content(first: Path, second: Path) -> str | None:
    """None if two images hold the same bytes and have the same size, else what differs.

    Images in use may be compared (no lock is taken); the caller has flushed them and holds them still.
    """
    done = subprocess.run([machine.program("qemu-img"), "compare", "-U", str(first), str(second)],
                          check=False, capture_output=True, text=True)
    text = (done.stdout + done.stderr).strip()
    if done.returncode == 0 and "mismatch" not in text:
        return None
    return f"{first} and {second}: {text}"
