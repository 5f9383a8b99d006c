"""What the kernel that reads a guest's file systems says of those that are damaged. Pure.

It passes over what it cannot read in a folder, and tells nobody but its log: a listing ends early, with no error.
"""

import re
from collections.abc import Sequence

# ext4, XFS, btrfs and FAT name the device so, at the beginning of a line.
_LINE = re.compile(r"(EXT[234]-fs|XFS|BTRFS|FAT-fs)( error| critical)? \((?:device )?([\w-]+)(?:: state \w+)?\): (.+)")
# `ls -l /sys/block`: the kernel's letters come in any order, the numbers behind the adapter in that of the disks.
_PLACE = re.compile(r"l\S+ .* (sd[a-z]+) -> \S+/target\d+:0:(\d+)/\S+")
_SD = re.compile(r"(sd[a-z]+)(\d*)")
_NOISE = re.compile(r"\bcomm [^:]{1,20}: |/sysroot\b|^[a-z0-9_]+:\d+: ")
_NO_DAMAGE = re.compile(r"subvol|couldn't mount as")  # of trying how it may be mounted
_MOST = 200  # characters of a line that are told


def damage_in(log: str, targets: Sequence[str]) -> dict[str, str]:
    """The first error of each file system in what guestfs_worker tells, by the guest's name of its device."""
    places = {match[1]: int(match[2]) for match in map(_PLACE.fullmatch, log.splitlines()) if match}
    found: dict[str, str] = {}
    for line in log.splitlines():
        match = _LINE.fullmatch(line)
        if match is None or _NO_DAMAGE.search(line):
            continue
        kind, error, device, words = match.groups()
        text = f"{kind}{error or ''}: {_NOISE.sub('', words)}"
        found.setdefault(_guest_name(device, places, targets), text[:_MOST])
    return found


def _guest_name(device: str, places: dict[str, int], targets: Sequence[str]) -> str:
    match = _SD.fullmatch(device)
    if match is None or places.get(match[1], len(targets)) >= len(targets):
        return f"a volume ({device})"
    return f"/dev/{targets[places[match[1]]]}{match[2]}"
