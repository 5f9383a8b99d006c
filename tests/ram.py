"""Guests whose disks lie in memory: a source kind for tests that need no hypervisor."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

from vmbackup.engine.immediate_reader import ImmediateReader
from vmbackup.hypervisor.source import Anchor, BootFile, DiskInfo, DomainInfo, Mode
from vmbackup.nbd.extents import Extent, Kind

BLOCK = 4096  # the granularity of the tracker


@dataclass
class RamDisk:
    """Bytes and the blocks that changed since the last restore point."""

    data: bytearray
    dirty: set[int] = field(default_factory=set)
    tracked: str | bool = False  # the checkpoint that the tracker began at
    path: str = "/ram/disk"
    attributes: dict[str, str] = field(default_factory=dict)  # of its image

    def write(self, offset: int, data: bytes) -> None:
        assert offset + len(data) <= len(self.data)
        self.data[offset : offset + len(data)] = data
        self.dirty |= set(range(offset // BLOCK, -(-(offset + len(data)) // BLOCK)))

    def resize(self, size: int) -> None:
        """As QEMU's bitmaps do: what is cut is forgotten, what is added is clean."""
        del self.data[size:]
        self.dirty -= set(range(-(-size // BLOCK), max(self.dirty, default=0) + 1))
        self.data.extend(bytes(size - len(self.data)))


@dataclass
class RamGuest:
    """A guest with some disks."""

    name: str
    disks: dict[str, RamDisk]
    uuid: str = field(default_factory=lambda: str(uuid.uuid4()))
    documents: dict[str, bytes] = field(default_factory=dict)
    boot_files: list[BootFile] = field(default_factory=list)


class _Reader(ImmediateReader):
    """Its replies come the last first: they may come in any order."""

    def __init__(self, frozen: bytes, on_read: Callable[[], None]) -> None:
        super().__init__()
        self._frozen, self._on_read = frozen, on_read

    def _fill(self, offset: int, buffer: memoryview) -> None:
        self._on_read()
        buffer[:] = self._frozen[offset : offset + len(buffer)]


class RamSource:
    """A disk at the point in time."""

    def __init__(
        self, target: str, disk: RamDisk, earlier: int, mode: Mode, reason: str | None, on_read: Callable[[], None]
    ) -> None:
        self._frozen, self._dirty = bytes(disk.data), set(disk.dirty)
        self._earlier = earlier
        self._on_read = on_read
        self.size = len(self._frozen)
        self.info = DiskInfo(target, "qcow2", self.size, disk.path, None, "virtio", dict(disk.attributes))
        self.mode, self.reason = mode, reason

    def extents(self, start: int = 0, end: int | None = None) -> Iterator[Extent]:
        zeros = bytes(BLOCK)
        for at in range(start, self.size if end is None else end, BLOCK):
            data = self._frozen[at : at + BLOCK]
            known = at + len(data) <= self._earlier
            if self.mode == "incremental" and known and at // BLOCK not in self._dirty:
                kind = Kind.UNCHANGED
            else:
                kind = Kind.ZERO if data == zeros[: len(data)] else Kind.DATA
            yield Extent(at, len(data), kind)

    def distrust(self, reason: str) -> None:
        self.mode, self.reason = "reread", reason

    def open_reader(self) -> _Reader:
        return _Reader(self._frozen, self._on_read)


class RamJob:
    """A point in time of a guest."""

    consistency = "crash"
    freeze_seconds = None
    quiesce_note = None
    seal_seconds = 0.0
    stood_still = True
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        host: RamHost,
        guest: RamGuest,
        parent: Anchor | None,
        full: bool,
        earlier: Mapping[str, DiskInfo],
        reread: Mapping[str, str],
    ) -> None:
        self._host, self._guest = host, guest
        self.domain = DomainInfo(guest.name, guest.uuid, 1, "running")
        self.time = host.now()
        self.documents = {"domain.xml": f"<domain><name>{guest.name}</name></domain>".encode(), **guest.documents}
        self.boot_files = list(guest.boot_files)
        sizes = {t: len(d.data) for t, d in guest.disks.items()}
        self.anchor = Anchor("libvirt", f"ram-{uuid.uuid4()}", "<domaincheckpoint/>", sizes)
        self.disks = [
            RamSource(
                target,
                disk,
                earlier[target].virtual_size if target in earlier else 0,
                *self._mode(target, disk, parent, full, earlier, reread),
                host.on_read,
            )
            for target, disk in guest.disks.items()
        ]
        self.finished: bool | None = None

    @staticmethod
    def _mode(
        target: str,
        disk: RamDisk,
        parent: Anchor | None,
        full: bool,
        earlier: Mapping[str, DiskInfo],
        reread: Mapping[str, str],
    ) -> tuple[Mode, str | None]:
        if full or target not in earlier:
            return "full", None
        old = earlier[target]
        tracked = parent is not None and disk.tracked == parent.checkpoint
        if target in reread or not tracked or len(disk.data) < old.virtual_size or disk.path != old.path:
            return "reread", reread.get(target, "no bitmap")
        return "incremental", None

    def give_up(self) -> None:
        self.finish(False)

    def check(self) -> None:
        self._host.on_check()

    def seal(self) -> None:
        self._host.on_seal()

    def finish(self, committed: bool) -> None:
        if self.finished is None:
            self.finished = committed
            for source in self.disks:
                disk = self._guest.disks[source.info.target]
                if committed:
                    disk.dirty -= source._dirty
                    disk.tracked = self.anchor.checkpoint

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.finish(False)


class _Lock:
    def release(self) -> None:
        pass


def _nothing() -> None:
    pass


class RamHost:
    """What the engine asks of a host. The hooks are called at each read, check and seal, and may raise."""

    def __init__(self, *guests: RamGuest) -> None:
        self._guests = {guest.name: guest for guest in guests}
        self.now: Callable[[], datetime] = lambda: datetime.now(UTC)
        self.on_read: Callable[[], None] = _nothing
        self.on_check: Callable[[], None] = _nothing
        self.on_seal: Callable[[], None] = _nothing
        self.on_begin: Callable[[str], None] = lambda _name: None
        self.on_reserve: Callable[[str], None] = lambda _name: None
        self.jobs: list[RamJob] = []

    def add(self, guest: RamGuest) -> None:
        self._guests[guest.name] = guest

    def domain(self, name: str) -> DomainInfo:
        guest = self._guests[name]
        return DomainInfo(guest.name, guest.uuid, 1, "running")

    def versions(self) -> dict[str, str]:
        return {"libvirt": "0.0.0", "qemu": "0.0.0"}

    def reserve(self, domain: DomainInfo) -> _Lock:
        self.on_reserve(domain.name)
        return _Lock()

    def begin_together(self, jobs: Sequence[RamJob]) -> list[RamJob | Exception]:
        """All at one time; what `on_begin` raises for one is its fate."""
        now = self.now()
        begun: list[RamJob | Exception] = []
        for job in jobs:
            job.time = now
            try:
                self.on_begin(job.domain.name)
                begun.append(job)
            except Exception as error:
                begun.append(error)
        return begun

    def prepare(self, domain: DomainInfo, **wanted: Any) -> RamJob:
        return self.begin(domain, **wanted)

    def begin(
        self,
        domain: DomainInfo,
        *,
        lock: object,
        repository_id: str,
        session: str,
        parent: Anchor | None,
        full: bool,
        quiesce: str,
        freezing: object,
        earlier: Mapping[str, DiskInfo],
        reread: Mapping[str, str],
        committed: object,
        elsewhere: str | None = None,
        readers: int,
    ) -> RamJob:
        self.jobs.append(RamJob(self, self._guests[domain.name], parent, full, earlier, reread))
        return self.jobs[-1]
