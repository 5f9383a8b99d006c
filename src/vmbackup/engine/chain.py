"""How a guest's restore points and libvirt's checkpoints belong together."""

from collections.abc import Iterable, Mapping, Sequence

from vmbackup.hypervisor.disks import BELOW_INODES
from vmbackup.hypervisor.names import CheckpointName
from vmbackup.hypervisor.plan import Committed
from vmbackup.hypervisor.source import Anchor, DiskInfo
from vmbackup.repository.layout import short_id
from vmbackup.repository.points import Point
from vmbackup.repository.records import DiskRecord
from vmbackup.repository.repository import Repository

SOURCE = "libvirt"
# By the name of a document; a copy keeps what a later version stores, under the last.
_DOCUMENT_TYPES = {
    "domain.xml": "libvirt-domain-xml",
    "nvram.fd": "uefi-variables",
    "tpm2-00.permall": "swtpm-state",
    "tpm-00.permall": "swtpm-state",
    "guest.json": "guest-settings",
}
_OTHER = "other"


def anchor_of(parent: Point | None) -> Anchor | None:
    """The checkpoint that an incremental from `parent` starts at; None where it left none."""
    anchor = parent.public["anchor"] if parent else None
    if not anchor or anchor["kind"] != SOURCE:
        return None
    return Anchor(**{field: anchor[field] for field in Anchor.__dataclass_fields__})


def earlier_disks(parent: Point | None, host: str) -> dict[str, DiskInfo]:
    """The disks of `parent` by target; inodes only where this host made it: another one may hold a copy."""
    if parent is None:
        return {}
    same_host = parent.public.get("host") == host
    return {disk.target: _info(disk, same_host=same_host) for disk in parent.disks}


def maker_of(parent: Point | None, host: str) -> str | None:
    """The name of the other host that made `parent`; None where this one did, or it is not told."""
    maker = parent.public.get("host") if parent else None
    return None if maker in (None, host) else str(maker).partition("/")[0]


def _info(disk: DiskRecord, *, same_host: bool) -> DiskInfo:
    attributes = dict(disk.attributes)
    path, serial, bus = attributes.pop("path", ""), attributes.pop("serial", None), attributes.pop("bus", "")
    inode = attributes.pop("inode", None)
    if not same_host:
        attributes.pop(BELOW_INODES, None)
    known = int(inode) if inode and inode.isdecimal() and same_host else None
    return DiskInfo(disk.target, disk.format, disk.virtual_size, path, serial, bus, attributes, known)


def record_of(info: DiskInfo) -> dict[str, str]:
    """The attributes of a disk's record: what `earlier_disks` makes the DiskInfo of again."""
    attributes = {**info.attributes, "bus": info.bus, "path": info.path}
    if info.serial:
        attributes["serial"] = info.serial
    if info.inode is not None:
        attributes["inode"] = str(info.inode)
    return attributes


def committed_in(repository: Repository, points: Sequence[Point], forgotten: Iterable[bytes]) -> Committed:
    """Tells of a checkpoint whether its restore point is, or was, in the repository; None for another repository's."""
    sessions = {short_id(point.session) for point in points} | {short_id(session) for session in forgotten}

    def committed(name: CheckpointName) -> bool | None:
        return name.session in sessions if name.repository_id == repository.id else None

    return committed


def typed_documents(documents: Mapping[str, bytes]) -> list[Mapping[str, str | int]]:
    """A guest's documents as they stand in a restore point's private part: without the zeros they end with."""
    made: list[Mapping[str, str | int]] = []
    for name, data in documents.items():
        kept = data.rstrip(b"\0")
        document: dict[str, str | int] = {"name": name, "type": _DOCUMENT_TYPES.get(name, _OTHER), "data": kept.hex()}
        if len(kept) < len(data):
            document["length"] = len(data)
        made.append(document)
    return made
