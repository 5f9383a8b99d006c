"""The guest's tree of files: which file system is its root, what is mounted in it, and the paths there."""

import re
from collections.abc import Sequence
from contextlib import suppress

from vmbackup.engine.files.guest_layout import (
    ENCRYPTED,
    FileSystem,
    FstabEntry,
    Mount,
    as_root,
    elsewhere,
    mounts,
    options_of,
    parse_fstab,
    with_points,
)
from vmbackup.engine.files.guest_process import GuestProcess, GuestRefusal
from vmbackup.errors import GuestFilesError, NotFoundError, UsageError

_EXPLICIT = re.compile(r"((?:btrfsvol:)?/dev/[^:]*):(/.*)", re.DOTALL)
_FIRST_DISK = "/dev/sda"
_FSTAB = "/etc/fstab"
_MOST_FSTAB = 256 << 10  # bytes
_WINDOWS = "/Windows/System32"
_NEVER_ROOT = {"vfat", "iso9660", "udf"}
_FOLDS_CASE = {"ntfs", "ntfs3"}
_BOOT_HINT = "start the guest from this point ('vmbackup boot'), or restore the disk, and open it there"


class GuestTree:
    """File systems that are mounted in the confined process as they are needed."""

    def __init__(self, process: GuestProcess, known: Sequence[FileSystem]) -> None:
        self._process, self._known = process, list(known)
        self._mounted: list[Mount] = []
        self._entries: list[FstabEntry] = []
        self._found: list[Mount] | None = None

    def filesystems(self) -> list[FileSystem]:
        """With the places where the guest has them."""
        return with_points(self._known, self._tree())

    def enter(self, path: str) -> str:
        """Mounts what a path lies on and gives the path there, links followed.

        `/dev/vda1:/etc` names the file system, `/etc` the guest's own tree. Raises NotFoundError, GuestFilesError,
        UsageError.
        """
        explicit = _EXPLICIT.fullmatch(path)
        tree = [self._alone(self._named(explicit[1]))] if explicit else self._tree()
        inner = explicit[2] if explicit else path
        if not inner.startswith("/") or "\0" in inner:
            raise UsageError(f'"{path}" is no path', 'write /PATH or DEVICE:/PATH; "ls" alone lists the devices')
        if not tree:
            raise self._no_tree()
        self._mount(tree)
        try:
            return self._real(inner)
        except GuestRefusal as error:
            if not error.is_absence:
                raise
            raise self._absent(path, inner, explicit=explicit is not None) from None

    def _real(self, path: str) -> str:
        try:
            return str(self._process.ask("real_path", path=path))
        except GuestRefusal as error:
            folds = any(fs.type in _FOLDS_CASE for fs in self._known)
            if not (error.is_absence and folds):
                raise
        written = str(self._process.ask("written_path", path=path))
        self._process.ask("stat", path=written)  # its last part may be new to it
        return written

    def _absent(self, path: str, inner: str, *, explicit: bool) -> NotFoundError:
        lying = None if explicit else elsewhere(inner, self._entries, self._mounted)
        if lying is None:
            return NotFoundError(f"there is no {path} in the guest", "list the folder above it to see what there is")
        hint = f"in the guest {lying.point} is another file system, {lying.spec}: name its disk by --with"
        return NotFoundError(f"there is no {path} on this disk", hint)

    def _named(self, device: str) -> FileSystem:
        for fs in self._known:
            if device in (fs.device, fs.mountable):
                return self._usable(fs)
        devices = ", ".join(fs.device for fs in self._known) or "none"
        raise NotFoundError(f"there is no file system {device}", f"there are {devices}")

    def _usable(self, fs: FileSystem) -> FileSystem:
        if fs.type in ENCRYPTED:
            raise GuestFilesError(f"{fs.device} is encrypted ({ENCRYPTED[fs.type]})", _BOOT_HINT)
        if not fs.has_files:
            what = f"{fs.type}, which holds no files" if fs.type not in ("", "unknown") else "no known file system"
            raise GuestFilesError(f"{fs.device} is {what}", '"ls" without a path lists what the disk holds')
        return fs

    def _no_tree(self) -> GuestFilesError | UsageError:
        usable = [fs.device for fs in self._known if fs.has_files]
        if usable:
            hint = f"name the file system too, as in {usable[0]}:/; there are {', '.join(usable)}"
            return UsageError("it cannot be told which of several file systems is the guest's root", hint)
        secret = [fs for fs in self._known if fs.type in ENCRYPTED]
        if secret:
            return GuestFilesError(f"{secret[0].device} is encrypted ({ENCRYPTED[secret[0].type]})", _BOOT_HINT)
        hint = "a volume group or RAID may need another disk of the guest: name it by --with"
        return GuestFilesError("the disk has no file system that is known", hint)

    def _tree(self) -> list[Mount]:
        """What the guest itself would mount; of a disk with a single file system that one; else nothing."""
        if self._found is None:
            self._found = self._search()
        return self._found

    def _search(self) -> list[Mount]:
        usable = [fs for fs in self._known if fs.has_files]
        roots = [found for fs in usable if fs.type not in _NEVER_ROOT and (found := self._as_root(fs)) is not None]
        on_disk = [found for found in roots if found[0].mountable.startswith(_FIRST_DISK)]
        chosen = on_disk if len(roots) > 1 else roots  # beside another system's disk, that of the one that was named
        if len(chosen) == 1:
            root, self._entries = chosen[0]
            return mounts(root, self._entries, self._known)
        return [self._alone(usable[0])] if len(usable) == 1 else []

    def _as_root(self, fs: FileSystem) -> tuple[Mount, list[FstabEntry]] | None:
        """How it is mounted as a root and its /etc/fstab, which is empty for Windows; None for what is no root."""
        for mount in as_root(fs):
            with suppress(GuestRefusal):
                self._mount([mount])
                if fs.type in _FOLDS_CASE:
                    self._process.ask("stat", path=self._process.ask("written_path", path=_WINDOWS))
                    return mount, []
                return mount, parse_fstab(str(self._process.ask("read", path=_FSTAB, most=_MOST_FSTAB)))
        return None

    def _alone(self, fs: FileSystem) -> Mount:
        return Mount(fs.mountable, "/", options_of(fs))

    def _mount(self, tree: list[Mount]) -> None:
        if self._mounted == tree:
            return
        self._mounted = []
        self._process.ask("unmount")
        for mount in tree:
            try:
                self._process.ask("mount", options=mount.options, mountable=mount.mountable, point=mount.point)
            except GuestRefusal:
                if mount.point == "/":  # else a folder that its root lacks, or damage: the rest is there
                    raise
        self._mounted = tree
