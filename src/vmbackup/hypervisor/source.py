"""What the engine reads a guest through; every source kind (live domain, stopped domain, export) gives this.

Nothing here knows libvirt. Sizes and offsets are bytes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Literal, NamedTuple, Protocol, Self

from vmbackup.nbd.extents import Extent

Mode = Literal["full", "incremental", "reread"]
Consistency = Literal["crash", "filesystem", "application"]
QuiescePolicy = Literal["auto", "required", "never"]


@dataclass(frozen=True)
class DomainInfo:
    """A guest as libvirt names it. `id` is that of the running instance, None when it is off."""

    name: str
    uuid: str
    id: int | None
    state: str  # "running", "paused", "shut off", "crashed", ...
    persistent: bool = True

    @property
    def active(self) -> bool:
        """True where QEMU runs for it (also paused)."""
        return self.id is not None


@dataclass(frozen=True)
class DiskInfo:
    """A disk of the guest.

    `attributes` of its image are what a restore makes the new image with: cluster_size, compat,
    lazy_refcounts, compression_type, extended_l2, data_file, encryption; numbers and booleans as text.
    `inode` is that of its file, None where it is no file of this host.
    """

    target: str
    format: str
    virtual_size: int
    path: str
    serial: str | None
    bus: str
    attributes: dict[str, str] = field(default_factory=dict)
    inode: int | None = None


class BootFile(NamedTuple):
    """A file of the host that a guest is started from; `kind`: "kernel", "initrd", ..., as people call it."""

    kind: str
    path: str


@dataclass(frozen=True)
class Anchor:
    """Where the next incremental starts from: kept in the restore point, given back as the parent.

    `disks` are the targets that the checkpoint covers with their sizes at that time; `xml` is the least
    that redefines it where libvirt lost its metadata.
    """

    kind: Literal["libvirt"]
    checkpoint: str
    xml: str
    disks: Mapping[str, int]


@dataclass(frozen=True)
class Hooks:
    """Commands of the operator's around the begin: program and arguments, no shell, each with so many seconds."""

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    guest_before: tuple[str, ...] = ()
    guest_after: tuple[str, ...] = ()
    seconds: float = 60.0
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FreezeOptions:
    """How a guest is frozen: which mount points (none: all), how long its agent may take (None: as usual), hooks."""

    mounts: tuple[str, ...] = ()
    seconds: float | None = None
    hooks: Hooks = field(default_factory=Hooks)


class DiskReader(Protocol):
    """One connection to a disk; not shared between threads. At most 16 reads outstanding."""

    @property
    def outstanding(self) -> int:
        """Reads submitted and not yet waited for."""

    def submit(self, offset: int, buffer: memoryview) -> int:
        """Asks for len(buffer) bytes at `offset` into `buffer`; returns a cookie; does not block for long."""

    def wait(self) -> int:
        """The cookie of a read that is complete, in any order. Raises HypervisorError if one failed."""

    def close(self) -> None:
        """Ends the connection. Never raises; may be called twice."""


class ReadableDisk(Protocol):
    """What of a disk's source is needed to read it."""

    @property
    def size(self) -> int:
        """Bytes of the disk at the point in time."""

    def extents(self, start: int = 0, end: int | None = None) -> Iterator[Extent]:
        """Runs in order from `start`, adding up to `end` (None: the disk's).

        UNCHANGED (since the parent) only when incremental, and only where the disk was as large at the parent's time.
        """

    def open_reader(self) -> DiskReader:
        """A connection of its own; several may be open at once, one a thread."""


class DiskSource(ReadableDisk, Protocol):
    """A disk at the job's point in time."""

    @property
    def info(self) -> DiskInfo:
        """The disk and its image."""

    @property
    def mode(self) -> Mode:
        """`full`: no earlier point has it, or all was asked for; `reread`: it has one but no usable bitmap."""

    @property
    def reason(self) -> str | None:
        """Why a `reread` is one."""

    def distrust(self, reason: str) -> None:
        """The bitmap is not to be believed: from here on the disk is a `reread`, and nothing is UNCHANGED."""


class GuestJob(Protocol):
    """One guest at one point in time; a context manager.

    Leaving it without finish(committed=True) ends the job, deletes the new checkpoint and leaves the parent
    as good as it was.
    """

    @property
    def domain(self) -> DomainInfo:
        """The guest."""

    @property
    def time(self) -> datetime:
        """The point in time, aware."""

    @property
    def consistency(self) -> Consistency:
        """What the guest knew of it."""

    @property
    def freeze_seconds(self) -> float | None:
        """How long the guest was frozen; None where it was not."""

    @property
    def quiesce_note(self) -> str | None:
        """Why the consistency is no better, for people."""

    @property
    def stood_still(self) -> bool:
        """Whether the guest wrote nothing from before its begin until after it: so several are at one instant."""

    @property
    def disks(self) -> Sequence[DiskSource]:
        """The disks that are read, busiest first."""

    @property
    def anchor(self) -> Anchor | None:
        """What the next run is incremental from, once committed; None where no disk can have one."""

    @property
    def documents(self) -> Mapping[str, bytes]:
        """Documents of the guest by name (documents.py): "domain.xml", and where it has them "nvram.fd", TPM state."""

    @property
    def boot_files(self) -> Sequence[BootFile]:
        """Files of this host that the guest is started from, to be read into the restore point too."""

    @property
    def notes(self) -> Sequence[str]:
        """Sentences for the operator: disks left out, clean-up that could not be done."""

    @property
    def seal_seconds(self) -> float:
        """How long the seal took, its waiting included; 0 before it."""

    def check(self) -> None:
        """Cheap, called between units of work: raises where the job is lost or scratch runs full."""

    def seal(self) -> None:
        """After the last byte was read: proves that the point in time held, and ends the job.

        Raises PointInTimeLostError where that cannot be proved: then nothing may be committed.
        """

    def finish(self, committed: bool) -> None:
        """The end. `committed`: the restore point is durable, superseded checkpoints go. Else: as if never run."""

    def __enter__(self) -> Self:
        """The job itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """finish(False), unless finished."""
