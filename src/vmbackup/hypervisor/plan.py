"""What a run would do with each disk of a domain, and why: for --dry-run, and what begin carries out.

The repository's newest restore point is the truth. Checkpoints and bitmaps only save reading, so every doubt
about one ends in a whole read of that disk, never in an error.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from vmbackup.errors import HypervisorError
from vmbackup.hypervisor.disks import BELOW, BELOW_INODES, DomainDisk, read_disks
from vmbackup.hypervisor.names import CheckpointName
from vmbackup.hypervisor.source import Anchor, DiskInfo, DomainInfo, Mode
from vmbackup.hypervisor.tidy import checkpoints
from vmbackup.hypervisor.tidy.half_done import HalfDone

# Does the repository hold (or has it held and forgotten) a restore point for this checkpoint? None: cannot tell,
# because it is another repository's.
Committed = Callable[[CheckpointName], bool | None]

_RAW_DATA = ("data_file", "data_file_inode")

_NOT_SURE = (
    "libvirt has lost the newest restore point's checkpoint: a disk is incremental only if QEMU still has its bitmap, "
    "which the backup itself finds out"
)


@dataclass(frozen=True)
class Request:
    """What the caller knows.

    `earlier`: target -> the disks as the newest restore point has them, also those without a bitmap;
    `reread`: target -> a reason to read the disk whole although it could be incremental ("scheduled");
    `half_done`: disks that a restore in place has left half changed; `elsewhere`: the host that made the newest restore
    point, if not this one.
    """

    repository_id: str
    parent: Anchor | None = None
    full: bool = False
    earlier: Mapping[str, DiskInfo] = field(default_factory=dict)
    reread: Mapping[str, str] = field(default_factory=dict)
    committed: Committed | None = None
    half_done: HalfDone = field(default_factory=lambda: HalfDone(""))
    elsewhere: str | None = None


@dataclass(frozen=True)
class DiskPlan:
    """One disk. `mode` is None for a disk that is left out, and `reason` then says why.

    `dirty_bytes` is what an incremental would read at most, None where that is not known before the run.
    `tracked`: the new checkpoint covers it. `earlier_size`: that of an incremental in the newest restore point.
    """

    info: DiskInfo
    mode: Mode | None
    reason: str | None
    dirty_bytes: int | None = None
    tracked: bool = False
    earlier_size: int | None = None

    @property
    def included(self) -> bool:
        """True where the restore point will have the disk."""
        return self.mode is not None

    @property
    def target(self) -> str:
        """The disk's name: vda."""
        return self.info.target


@dataclass(frozen=True)
class Plan:
    """A run, planned.

    `parent` is the checkpoint that incremental disks start from; `superseded` are ours that
    may go after the commit, oldest first; `evidence` ours that no restore point of the repository names.
    """

    domain: DomainInfo
    disks: tuple[DiskPlan, ...]
    parent: str | None
    superseded: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def included(self) -> tuple[DiskPlan, ...]:
        """The disks that the restore point will have."""
        return tuple(disk for disk in self.disks if disk.included)

    def to_drop(self, keep: int) -> tuple[str, ...]:
        """The superseded checkpoints that go, where `keep` stay, the new one included."""
        kept = max(0, keep - 1)
        return self.superseded[: len(self.superseded) - kept] if kept else self.superseded


def require_disks(plan: Plan) -> None:
    """Raises HypervisorError where the restore point would have no disk."""
    if not plan.included:
        why = [f"disk {disk.target} is left out: {disk.reason}" for disk in plan.disks]
        raise HypervisorError(
            f"domain {plan.domain.name} has no disk that can be backed up", "; ".join(why) or "it has no disks"
        )


@dataclass
class _Chain:
    """The state of our checkpoints: what the parent's bitmaps are worth, and why nothing where so."""

    sizes: Mapping[str, int | None] = field(default_factory=dict)
    to_redefine: bool = False
    why_not: str | None = None
    broken: Mapping[str, str] = field(default_factory=dict)  # target -> why its bitmap cannot be used


def make_plan(raw: Any, domain: Any, info: DomainInfo, request: Request, *, apply: bool) -> Plan:
    """Plans a run. `apply` lets it give lost metadata of an active domain back to libvirt; else it only looks.

    Raises libvirtError, HypervisorError.
    """
    disks = read_disks(raw, domain)
    ours = checkpoints.own_checkpoints(domain, request.repository_id)
    superseded, evidence = _classify(ours, request)
    newer = [name for name in evidence if _newer(name, request.parent)]
    chain = _Chain() if request.full else _read_chain(domain, disks, request, newer, apply=apply)
    lost = _own_parent(request)
    superseded += _orphans(disks, [*ours, *([lost] if lost else [])], request)
    if lost and lost not in ours:
        superseded.append(lost)  # without metadata, or just defined again; its bitmaps may be there
    plans = tuple(_plan_disk(disk, request, chain) for disk in disks)
    incremental = any(plan.mode == "incremental" for plan in plans)
    return Plan(
        domain=info,
        disks=plans,
        parent=request.parent.checkpoint if incremental and request.parent else None,
        superseded=tuple(str(name) for name in superseded),
        evidence=tuple(str(name) for name in evidence),
        notes=(
            *_notes(disks, evidence, newer),
            *_half_done(info, disks, request.half_done),
            *([_NOT_SURE] if incremental and chain.to_redefine else []),
        ),
    )


def _classify(ours: list[CheckpointName], request: Request) -> tuple[list[CheckpointName], list[CheckpointName]]:
    """Ours that may go after the commit, and ours that no restore point names: those are never deleted here.

    Those of a dead run of this host are gone by now (recovery). Without a `committed` to ask, only what is
    newer than the parent counts as unnamed: no run of ours leaves such a one.
    """
    superseded: list[CheckpointName] = []
    evidence: list[CheckpointName] = []
    for name in ours:
        is_parent = request.parent is not None and str(name) == request.parent.checkpoint
        asked = request.committed(name) if request.committed else not _newer(name, request.parent)
        (superseded if is_parent or asked is True else evidence).append(name)
    return superseded, evidence


def _orphans(disks: list[DomainDisk], known: list[CheckpointName], request: Request) -> list[CheckpointName]:
    """Ours whose bitmaps lie in an image, and that libvirt knows nothing of: an older copy was put in its place."""
    names = {CheckpointName.parse(name) for disk in disks if not disk.left_out for name in disk.bitmaps}
    own = {name for name in names if name and name.repository_id == request.repository_id} - set(known)
    return _classify(sorted(own, key=lambda name: name.time), request)[0]


def _own_parent(request: Request) -> CheckpointName | None:
    """The parent's checkpoint, unless it is another repository's (in a replica)."""
    name = CheckpointName.parse(request.parent.checkpoint) if request.parent else None
    return name if name and name.repository_id == request.repository_id else None


def _newer(name: CheckpointName, parent: Anchor | None) -> bool:
    known = CheckpointName.parse(parent.checkpoint) if parent else None
    return known is None or (name.time > known.time and name != known)


def _read_chain(
    domain: Any, disks: list[DomainDisk], request: Request, newer: list[CheckpointName], *, apply: bool
) -> _Chain:
    if newer:
        return _Chain(
            why_not=f"the repository is older than this host: checkpoint {newer[-1]} has no restore point in it"
        )
    parent = request.parent
    if parent is None:
        return _Chain(why_not="the newest restore point names no checkpoint")
    if _own_parent(request) is None:
        return _Chain(why_not="the newest restore point came from another repository, whose checkpoint is not ours")
    if not domain.isActive():
        return _chain_off(disks, parent)
    found = checkpoints.lookup(domain, parent.checkpoint)
    if found is not None:
        return _sized(checkpoints.dirty_bytes(found), parent)
    if not apply:
        return _Chain(sizes=dict.fromkeys(parent.disks), to_redefine=True)
    targets = [disk.target for disk in disks if disk.target in parent.disks and not disk.left_out]
    xml = checkpoints.redefine_xml(parent.checkpoint, checkpoints.created(parent.xml), targets)
    made = checkpoints.redefine(domain, xml) if targets else None
    if made is None:
        return _Chain(why_not=f"checkpoint {parent.checkpoint} and its bitmaps are gone from the domain")
    return _sized(checkpoints.dirty_bytes(made), parent)


def _sized(sizes: Mapping[str, int | None], parent: Anchor) -> _Chain:
    broken = {target: broken_reason(parent.checkpoint) for target, size in sizes.items() if size is None}
    return _Chain(sizes=sizes, broken=broken)


def _chain_off(disks: list[DomainDisk], parent: Anchor) -> _Chain:
    """What the images themselves say of a guest that is off: how much has changed is found out in reading."""
    covered = [disk for disk in disks if disk.target in parent.disks and disk.chain]
    found = {disk.target: _why_not_off(disk, parent.checkpoint) for disk in covered}
    return _Chain(sizes=dict.fromkeys(found), broken={target: why for target, why in found.items() if why})


def _why_not_off(disk: DomainDisk, name: str) -> str | None:
    """Why a bitmap in an image that nobody has open cannot be used; None where it is sound."""
    if disk.chain[0].bitmaps.get(name) != ("auto",):
        return broken_reason(name)
    if any(name in image.bitmaps for image in disk.chain[1:]):
        return "a snapshot was made since, and while the guest is off its changes lie in bitmaps of several images"
    return None


def _plan_disk(disk: DomainDisk, request: Request, chain: _Chain) -> DiskPlan:
    if disk.left_out:
        return DiskPlan(disk.info, None, disk.left_out)
    tracked = disk.untracked is None
    if request.full or disk.target not in request.earlier:
        return DiskPlan(disk.info, "full", None, tracked=tracked)
    reason = _why_reread(disk, request, chain)
    if reason is not None:
        return DiskPlan(disk.info, "reread", reason, tracked=tracked)
    dirty, earlier = chain.sizes.get(disk.target), request.earlier[disk.target].virtual_size
    return DiskPlan(disk.info, "incremental", None, dirty_bytes=dirty, tracked=tracked, earlier_size=earlier)


def _why_reread(disk: DomainDisk, request: Request, chain: _Chain) -> str | None:
    """Why a disk that an earlier point has is read whole; None where its bitmap is good."""
    earlier = request.earlier[disk.target]
    if point := request.half_done.point_of(disk.target):
        return f"a restore in place to {point} was not finished"
    if disk.untracked:
        return f"{disk.untracked}; with the domain off: {disk.cure}" if disk.cure else disk.untracked
    if chain.why_not:
        return chain.why_not
    if disk.info.virtual_size < earlier.virtual_size:
        return f"the disk shrank from {earlier.virtual_size} to {disk.info.virtual_size} bytes"
    if disk.info.path != earlier.path and not _by_snapshot(disk.info, earlier):
        return f"it is another image than in the newest restore point, which has {earlier.path}"
    if other := _other_file(disk.info, earlier):
        return f"{other} is another file than in the newest restore point"
    if disk.info.path == earlier.path and (new := _new_below(disk.info, earlier)):
        return f"it is another image than in the newest restore point: {new} lies below it"
    if any(disk.info.attributes.get(name) != earlier.attributes.get(name) for name in _RAW_DATA):
        return "its raw data is another file than in the newest restore point"
    if disk.target not in chain.sizes:
        return "the checkpoint of the newest restore point does not cover the disk"
    return chain.broken.get(disk.target) or request.reread.get(disk.target)


def _files(info: DiskInfo) -> dict[str, int | None]:
    """The disk's image and those below it, by path, with their inodes as far as these are known."""
    paths, inodes = (info.attributes.get(name, "").split("\n") for name in (BELOW, BELOW_INODES))
    pairs = zip_longest(paths, inodes, fillvalue="")
    below = {path: int(inode) if inode.isdecimal() else None for path, inode in pairs if path}
    return below | {info.path: info.inode}


def _other_file(now: DiskInfo, earlier: DiskInfo) -> str | None:
    """The image of the disk, or one below it, in whose place there is another file."""
    was = {path: inode for path, inode in _files(earlier).items() if inode is not None}
    return next((path for path, inode in _files(now).items() if was.get(path, inode) != inode), None)


def _new_below(now: DiskInfo, earlier: DiskInfo) -> str | None:
    """An image below the same one as ever that did not lie there, by no name: `qemu-img rebase`."""
    was = _files(earlier)
    new = ((path, inode) for path, inode in _files(now).items() if path not in was)
    return next((path for path, inode in new if inode is None or inode not in was.values()), None)


def _by_snapshot(now: DiskInfo, earlier: DiskInfo) -> bool:
    """Whether snapshots explain another path: a new image on top, or the top merged into one that lay below.

    libvirt takes the bitmaps along in both; nothing else gives an image one of that name.
    """
    return earlier.path in now.attributes.get(BELOW, "").split("\n") or now.path in earlier.attributes.get(
        BELOW, ""
    ).split("\n")


def broken_reason(checkpoint: str) -> str:
    """Why a disk is read whole whose bitmap libvirt refuses (error 109)."""
    why = "QEMU ended without saving it, or this is another image"
    return f"the bitmap of checkpoint {checkpoint} is missing or broken ({why})"


def _half_done(info: DomainInfo, disks: list[DomainDisk], mark: HalfDone) -> list[str]:
    found = ((disk.target, mark.point_of(disk.target)) for disk in disks if not disk.left_out)
    return [
        f"disk {target} may be half restored: a restore in place to {point} was not finished. Stop the guest and run"
        f" it again; or, if the disk is right as it is, 'vmbackup purge {info.name}' ends this warning"
        for target, point in found
        if point
    ]


def _notes(disks: list[DomainDisk], evidence: list[CheckpointName], newer: list[CheckpointName]) -> list[str]:
    lost = [disk for disk in disks if disk.left_out and not disk.left_out_for_good]
    notes = [f"disk {disk.target} is left out: {disk.left_out}" for disk in lost]
    notes += [disk.note for disk in disks if disk.note]
    notes += [
        f"disk {disk.target} is encrypted: the restore point holds what the guest sees, under the repository's own"
        " encryption; a restore needs the image's passphrase to encrypt it again (--luks-passphrase-file)"
        for disk in disks
        if "encryption" in disk.info.attributes
    ]
    if newer:
        notes.append(
            "the repository is older than this host: was it restored from a copy? "
            f"Checkpoints without a restore point: {', '.join(map(str, newer))}. They are left alone"
        )
    elif evidence:
        notes.append(f"checkpoints without a restore point are left alone: {', '.join(map(str, evidence))}")
    return notes
