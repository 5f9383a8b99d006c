"""The domain that all programs back up, and an export of it for those that speak only NBD."""

from __future__ import annotations

import contextlib
import random
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from tests.lab.disk import Disk
from tests.lab.domain import Workhorse
from tests.lab.session import Lab

from .disk import SEED
from .measure import run

WRITES = 500
WRITE_BYTES = 64 << 10
WRITE_ALIGNMENT = 4 << 10   # a guest's file system: most writes touch two chunks, clusters and bits of a bitmap
JOB_TIMEOUT = 30.0          # seconds


class Guest:
    """A running, paused domain with one disk `vda`."""

    def __init__(self, lab: Lab, size: int, content: Path | None = None) -> None:
        self._horse: Workhorse = lab.workhorse(Disk(size=size), start=False)
        self.size = size
        self.name = self._horse.name
        self.folder = self._horse.folder
        self.image = self._horse.path("vda")
        if content is not None:
            run("cp", "--reflink=auto", str(content), str(self.image))
        self.start()

    def start(self) -> None:
        """Starts it, paused."""
        self._horse.start()
        self.qemu = self._horse.pid

    def stop(self) -> None:
        """Ends it in good order: bitmaps are kept in the image."""
        self._horse.stop()

    def change(self, writes: int, chance: random.Random) -> None:
        """So many whole chunks at random places get other bytes."""
        for place in chance.sample(range(self.size // WRITE_BYTES), writes):
            self._horse.write_data("vda", place * WRITE_BYTES, chance.randbytes(WRITE_BYTES))
        self._horse.flush("vda")

    def scatter(self, variant: int) -> None:
        """The scattered writes: always to the same places, incompressible, other bytes for each variant."""
        place, content = random.Random(SEED), random.Random(f"{SEED} {variant}")
        for _ in range(WRITES):
            offset = place.randrange((self.size - WRITE_BYTES) // WRITE_ALIGNMENT) * WRITE_ALIGNMENT
            self._horse.write_data("vda", offset, content.randbytes(WRITE_BYTES))
        self._horse.flush("vda")

    def check(self, restored: Path) -> None:
        """Raises ImagesDifferError unless the image is what the disk is now."""
        self._horse.compare("vda", restored)

    def forget_checkpoints(self) -> None:
        """Deletes all checkpoints, whose ever they are: the next round starts without."""
        import libvirt

        for checkpoint in self._horse.domain.listAllCheckpoints(libvirt.VIR_DOMAIN_CHECKPOINT_LIST_ROOTS):
            checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_CHILDREN)

    def socket_path(self) -> Path:
        """Where QEMU can make a socket: nobody uses the name yet."""
        return self.folder / f"{secrets.token_hex(3)}.sock"

    @contextlib.contextmanager
    def export(self) -> Iterator[str]:
        """The disk's NBD address, by a pull backup job without a checkpoint."""
        import libvirt

        domain, socket = self._horse.domain, self.socket_path()
        scratch = self.folder / f"{secrets.token_hex(3)}.scratch"
        domain.backupBegin(
            f"<domainbackup mode='pull'><server transport='unix' socket='{socket}'/>"
            f"<disks><disk name='vda' backup='yes' type='file'><scratch file='{scratch}'/></disk></disks>"
            "</domainbackup>", None, 0)
        try:
            yield f"nbd+unix:///vda?socket={quote(str(socket))}"
        finally:
            domain.abortJob()
            deadline = time.monotonic() + JOB_TIMEOUT
            while domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE and time.monotonic() < deadline:
                time.sleep(0.05)
            for path in (socket, scratch):
                path.unlink(missing_ok=True)
