"""Which file systems a guest's disks hold, and where the guest has them: names, kinds, /etc/fstab. Pure."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

# What libguestfs and blkid call what cannot be mounted, and what a person calls it.
ENCRYPTED = {"crypto_LUKS": "LUKS", "BitLocker": "BitLocker"}
PARTS = {"LVM2_member": "a part of a volume group", "linux_raid_member": "a part of a RAID"}
_NO_FILES = {"swap", "unknown", "", *ENCRYPTED, *PARTS}
_PSEUDO = {"swap", "none", "proc", "sysfs", "tmpfs", "devtmpfs", "devpts", "efivarfs", "auto"}
_DISK = re.compile(r"/dev/sd([a-z]+)(\d*)")  # as libguestfs names them, in the order in which they were added
_TAGS = {"UUID": "uuid", "LABEL": "label", "PARTUUID": "partuuid", "PARTLABEL": "partlabel"}
_BY = {"by-uuid": "uuid", "by-label": "label", "by-partuuid": "partuuid", "by-partlabel": "partlabel"}
_ESCAPE = re.compile(r"\\([0-7]{3})")
_MOST_LINES = 10_000
_ROOT_VOLUMES = ("@", "root", "@rootfs")  # of Ubuntu and openSUSE, of Fedora, of Debian


@dataclass(frozen=True)
class FileSystem:
    """One of a disk. `mountable` is libguestfs's name for it, `device` the guest's; sizes in bytes."""

    mountable: str
    device: str
    type: str
    label: str
    uuid: str
    size: int
    partuuid: str = ""
    partlabel: str = ""
    mount_point: str | None = None

    @property
    def has_files(self) -> bool:
        """Whether it can be mounted."""
        return self.type not in _NO_FILES

    @property
    def remark(self) -> str:
        """Why it cannot be."""
        if self.type in ENCRYPTED:
            return "encrypted"
        return PARTS.get(self.type, "" if self.has_files or self.type == "swap" else "unknown")


@dataclass(frozen=True)
class FstabEntry:
    """A line of /etc/fstab."""

    spec: str
    point: str
    type: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class Mount:
    """What is mounted where."""

    mountable: str
    point: str
    options: str


def guest_name(name: str, targets: Sequence[str]) -> str:
    """The guest's /dev/vda2 for libguestfs's /dev/sda2; other names (volumes) are the same in both."""

    def named(match: re.Match[str]) -> str:
        number = 0
        for letter in match[1]:
            number = number * 26 + ord(letter) - ord("a") + 1
        return f"/dev/{targets[number - 1]}{match[2]}" if number <= len(targets) else match[0]

    return _DISK.sub(named, name)


def parse_fstab(text: str) -> list[FstabEntry]:
    """The file systems in it; what is malformed is passed over."""
    found = []
    for line in text.splitlines()[:_MOST_LINES]:
        words = line.split("#", 1)[0].split() if line.lstrip().startswith("#") else line.split()
        if len(words) >= 3 and words[1].startswith("/") and words[2] not in _PSEUDO:
            spec, point = (_ESCAPE.sub(lambda m: chr(int(m[1], 8)), word) for word in words[:2])
            options = tuple(words[3].split(",")) if len(words) > 3 else ()
            found.append(FstabEntry(spec, point.rstrip("/") or "/", words[2], options))
    return found


def _is_meant(entry: FstabEntry, fs: FileSystem) -> bool:
    spec, tag = entry.spec, entry.spec.partition("=")
    if tag[1] and tag[0] in _TAGS:
        wanted, value = tag[2].strip("\"'"), getattr(fs, _TAGS[tag[0]])
        return bool(value) and wanted.lower() == str(value).lower()
    parts = spec.split("/")
    if spec.startswith("/dev/disk/") and len(parts) == 5 and parts[3] in _BY:
        value = getattr(fs, _BY[parts[3]])
        return bool(value) and parts[4].lower() == str(value).lower()
    return spec in {fs.device, _mapper_name(fs.device)}


def _mapper_name(device: str) -> str:
    """/dev/vg/lv as device mapper names it."""
    words = device.split("/")
    if len(words) != 4 or words[1] != "dev":
        return device
    return f"/dev/mapper/{words[2].replace('-', '--')}-{words[3].replace('-', '--')}"


def mounts(root: Mount, entries: Iterable[FstabEntry], known: Sequence[FileSystem]) -> list[Mount]:
    """The guest's tree as far as these file systems hold it, parents first."""
    found = {"/": root}
    for entry in entries:
        meant = [fs for fs in known if fs.has_files and _is_meant(entry, fs)]
        if meant and entry.point not in found:
            volume = [o for o in entry.options if o.startswith(("subvol=", "subvolid="))]  # of a btrfs
            found[entry.point] = Mount(meant[0].mountable, entry.point, ",".join([options_of(meant[0]), *volume]))
    return sorted(found.values(), key=lambda m: (m.point != "/", m.point.count("/"), m.point))


def options_of(fs: FileSystem) -> str:
    """Read-only; names in UTF-8; and a copy of a file system beside it is no reason to refuse."""
    return {"vfat": "ro,utf8", "xfs": "ro,nouuid"}.get(fs.type, "ro")


def as_root(fs: FileSystem) -> list[Mount]:
    """How it may be mounted to see whether it is a guest's root."""
    volumes = ("", *_ROOT_VOLUMES) if fs.type == "btrfs" else ("",)
    return [Mount(fs.mountable, "/", f"{options_of(fs)},subvol={v}" if v else options_of(fs)) for v in volumes]


def with_points(known: Sequence[FileSystem], tree: Sequence[Mount]) -> list[FileSystem]:
    """The same, told where the guest has them."""
    points = {mount.mountable: mount.point for mount in reversed(tree)}
    return [replace(fs, mount_point=points.get(fs.mountable)) for fs in known]


def elsewhere(path: str, entries: Iterable[FstabEntry], tree: Sequence[Mount]) -> FstabEntry | None:
    """The entry of /etc/fstab that a path lies on, if that file system is not here."""
    here = {mount.point for mount in tree}
    above = [e for e in entries if e.point in ("/", path) or path.startswith(f"{e.point}/")]
    nearest = max(above, key=lambda e: len(e.point), default=None)
    return nearest if nearest is not None and nearest.point not in here else None
