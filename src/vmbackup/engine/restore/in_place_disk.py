"""One disk of a restore in place: held, compared, written."""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from vmbackup.engine.images.image_check import mend, refuse_damaged, refuse_unwritable
from vmbackup.engine.images.image_options import was_encrypted
from vmbackup.engine.images.image_server import ImageServer, resize
from vmbackup.engine.images.in_use import DeviceClaim, refuse_file_in_use
from vmbackup.engine.images.local_image import has_data, reading
from vmbackup.engine.map_lookup import MapIndex
from vmbackup.engine.pipeline.present_packs import check_present
from vmbackup.engine.restore.comparison import Comparison, Differences
from vmbackup.engine.restore.disk_copy import DiskCopy
from vmbackup.engine.restore.disk_job import damage_named
from vmbackup.engine.restore.trusted_bitmap import Base, find_base, samples, suspects
from vmbackup.errors import DamageError, TargetError, UsageError
from vmbackup.hypervisor.disks import StoppedDisk
from vmbackup.hypervisor.images import ImageInfo, image_info
from vmbackup.hypervisor.qemu_secret import QemuSecret
from vmbackup.nbd import protocol
from vmbackup.progress import Progress, told
from vmbackup.repository.differences import DiskMap
from vmbackup.repository.maps import Extent
from vmbackup.repository.points import Point
from vmbackup.repository.records import DiskRecord
from vmbackup.repository.repository import Repository

_FORMATS = ("qcow2", "raw")


def is_device(path: Path) -> bool:
    """Whether it is a block device, whose size nobody changes. Raises TargetError where there is nothing."""
    try:
        return stat.S_ISBLK(path.stat().st_mode)
    except OSError as error:
        raise TargetError(f"cannot open {path}: {error.strerror}") from error


class InPlaceDisk:
    """A disk of `point` and the image that is to become it; `half_done`: an earlier run has left it half changed."""

    def __init__(
        self,
        repository: Repository,
        point: Point,
        record: DiskRecord,
        place: StoppedDisk,
        workers: int,
        *,
        half_done: bool,
        passphrase: bytes | None = None,
    ) -> None:
        self._repository, self._point, self.record = repository, point, record
        self.target, self.path, self.format = record.target, Path(place.path), place.format
        self._workers, self._half_done = workers, half_done
        self._stack = ExitStack()
        self._secret: QemuSecret | None = None
        self._passphrase = passphrase
        self._driver = "luks" if place.encrypted and place.format == "raw" else place.format
        self._map = DiskMap(repository.catalog(point.lineage.group), point, record)
        self._server: ImageServer | None = None
        self._found = Differences()
        self._device = is_device(self.path)
        self._size = 0
        self._checked = self._tail_differs = False
        self._info: ImageInfo | None = None
        self.unfit = half_done
        self.compared_bytes = 0
        self.why_not_quick: str | None = None
        self.notes: list[str] = []
        if place.format not in _FORMATS:
            raise TargetError(
                f"{self.path} is a {place.format} image: only qcow2 and raw ones are written in place",
                "restore it to a folder with --output",
            )
        if was_encrypted(record) and not place.encrypted:
            raise TargetError(
                f"disk {self.target} was encrypted, and {self.path} is not: it would be readable there",
                "restore it to a folder with --output",
            )
        if place.encrypted and passphrase is None:
            hint = f"name its passphrase with --luks-passphrase-file {self.target}=FILE"
            raise UsageError(f"disk {self.target} is encrypted", hint)

    # Holding the image

    def claim(self) -> None:
        """Keeps the kernel's own users off, and makes sure that the image is sound. Raises TargetError."""
        if self._device:
            self._stack.callback(DeviceClaim(self.path).release)
        else:
            refuse_file_in_use(self.path)
        if self._passphrase is not None:
            self._secret = self._stack.enter_context(QemuSecret(self._passphrase))

    def hold(self, *, bitmap: str | None = None, read_only: bool = False) -> None:
        """Takes QEMU's lock of the image. Raises TargetError where somebody has it, or it is damaged."""
        if not self._half_done and self._info is None:
            # Now: a bitmap counts as broken while QEMU has the image open.
            self._info = image_info(str(self.path), self._driver)
        if not self._checked:
            self._check(read_only=read_only)
            self._checked = True
        self._server = ImageServer(
            self.path, self._driver, self._workers, secret=self._secret, bitmap=bitmap, read_only=read_only
        )
        self._size = self._server.image(mapped=False).size
        if self._device and self._size < self.record.virtual_size:
            raise TargetError(
                f"{self.path} is too small: it has {self._size} bytes, disk {self.target} of the restore point "
                f"{self.record.virtual_size}",
                "restore it to a folder with --output, or to a larger device with --to",
            )

    def _check(self, *, read_only: bool) -> None:
        """Raises TargetError for an image that cannot be written, or is damaged; `read_only`: mends nothing."""
        refuse_unwritable(self.path)
        if not self._half_done:
            refuse_damaged(self.path, self._driver, self._secret)
        elif not read_only:
            mend(self.path, self._driver, self._secret)

    @property
    def _held(self) -> ImageServer:
        if self._server is None:
            raise ValueError(f"{self.path} is not held")
        return self._server

    def let_go(self) -> None:
        """Gives the lock back, with nothing changed."""
        self._held.finish()
        self._server = self._info = None

    def abandon(self) -> None:
        """Lets go, in whatever state. Never raises."""
        if self._server is not None:
            self._server.abandon()
            self._server = None
        self._stack.close()

    # Its size

    def resize_needed(self) -> bool:
        """Whether the image has another size than the restore point. A device keeps its own."""
        return not self._device and self._size != self._rounded(self.record.virtual_size)

    @staticmethod
    def _rounded(size: int) -> int:
        return -(-size // 512) * 512

    def resize(self) -> None:
        """Gives the image, which is let go, the size of the restore point."""
        resize(self.path, self._driver, self.record.virtual_size, self._secret)

    # Comparing

    def compare(self, points: Sequence[Point], quick: bool, progress: Progress) -> None:
        """Finds what differs; nothing is changed."""
        if not quick or not self._compare_quickly(points, progress):
            image = self._held.image(mapped=True)
            with told(progress, f"comparing {self._point.domain} {self.target}", self.record.virtual_size) as advance:
                self._found = Comparison(self._map, image, self._workers).run(advance)
            self.compared_bytes += self._found.read_bytes
        if self._tail:
            self.notes.append(
                f"{self.path} is larger than disk {self.target} of the restore point: the guest sees {self._size} bytes"
            )
            start = self._rounded(self.record.virtual_size)
            self._tail_differs = has_data(self._held.image(mapped=False), start, self._size)

    def _compare_quickly(self, points: Sequence[Point], progress: Progress) -> bool:
        """Compares what the bitmap calls changed, and samples; False where the bitmap cannot be believed."""
        base = self._base(points)
        if isinstance(base, str):
            self.why_not_quick = base
            return False
        read_only = self._held.read_only
        self.let_go()
        self.hold(bitmap=base.bitmap, read_only=read_only)
        old = DiskMap(self._repository.catalog(base.point.lineage.group), base.point, base.disk)
        client = self._held.nbd.connect((protocol.BASE_ALLOCATION, base.context))
        try:
            with reading(self.path):
                changed = suspects(old, self._map, client, base.context)
        finally:
            client.close()
        comparison = Comparison(self._map, self._held.image(mapped=False), self._workers)
        probe = comparison.run(lambda _n: None, samples(self._map, changed))
        self.compared_bytes += probe.read_bytes
        if probe.ranges:
            first = next(iter(probe.ranges))[0] * self.record.chunk_size
            self.why_not_quick = f"its bitmap missed a change (at byte {first}, which it calls unchanged)"
            self.notes.append(f"disk {self.target}: {self.why_not_quick}; all of it was compared")
            self.unfit = True
            return False
        size = changed.chunks * self.record.chunk_size
        with told(progress, f"comparing {self._point.domain} {self.target}", size) as advance:
            self._found = comparison.run(advance, changed)
        self.compared_bytes += self._found.read_bytes
        return True

    def _base(self, points: Sequence[Point]) -> Base | str:
        if self._info is None:
            return "a restore in place of it was not finished"
        return find_base(points, self.record, self._info, os.stat(self.path).st_ino)

    # Changing

    @property
    def written_bytes(self) -> int:
        """What is, or is to be, written."""
        return min(self._found.ranges.chunks * self.record.chunk_size, self.record.virtual_size)

    @property
    def differs(self) -> bool:
        """Whether anything is to be written."""
        return bool(self._found.ranges) or self._tail_differs

    @property
    def _tail(self) -> int:
        """Bytes of a device beyond the disk's end."""
        return max(0, self._size - self._rounded(self.record.virtual_size)) if self._device else 0

    def _runs(self) -> Iterator[Extent]:
        index = MapIndex(self._map)
        for first, chunks in self._found.ranges:
            yield from index.extents(first, chunks)

    def check_ready(self) -> None:
        """What can be known before the first change: the packs are there, and there is space. Raises."""
        with damage_named(self._point, self.record):
            check_present(self._map, self._runs())
        if self._device:
            return
        status = os.statvfs(self.path)
        free = status.f_bavail * status.f_frsize
        if self._found.new_bytes > free:
            raise TargetError(
                f"{self.path} would need up to {self._found.new_bytes} bytes more, and {free} are free there",
                "make space, or restore to another folder with --output",
            )

    def write(self, progress: Progress) -> None:
        """Writes what differs, durably, and compares that again. Raises DamageError, TargetError."""
        copy = DiskCopy(self._repository, self._point, self.record, self._workers)
        try:
            copy.write(self._held, progress, self._runs(), total=self.written_bytes)
        except DamageError as error:
            raise DamageError(
                f"disk {self.target} is half restored: {error.message}",
                "do not start the guest: run the same command again when the repository is repaired, or restore another"
                " restore point in place",
                object_key=error.object_key,
            ) from error
        if self._tail_differs:
            self._zero_tail()
        self._held.sync()
        wrong = Comparison(self._map, self._held.image(mapped=False), self._workers)
        if left := next(iter(wrong.run(lambda _n: None, self._found.ranges).ranges), None):
            offset = left[0] * self.record.chunk_size
            raise TargetError(
                f"{self.path} does not keep what is written to it: it differs at byte {offset}",
                "look at the host's log for errors of its storage; the disk is half restored",
            )

    def _zero_tail(self) -> None:
        writer = self._held.open_writer()
        try:
            writer.zero(self._rounded(self.record.virtual_size), self._tail)
            writer.close()
        finally:
            writer.abandon()

    def finish(self) -> None:
        """Ends the server: bitmaps are saved, and the image is free."""
        self._held.finish()
        self._server = None
