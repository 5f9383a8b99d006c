"""Files of a guest, listed and fetched out of a restore point without a restore."""

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmbackup.engine.files.appliance import appliance
from vmbackup.engine.files.guest_layout import FileSystem, guest_name
from vmbackup.engine.files.guest_process import GuestProcess, GuestRefusal, RunFolder
from vmbackup.engine.files.guest_tree import GuestTree
from vmbackup.engine.files.kernel_words import damage_in
from vmbackup.engine.files.landed_tree import Landed, Piece
from vmbackup.engine.files.landing import Landing
from vmbackup.engine.files.watched import WatchedExport
from vmbackup.engine.serve.served import ServedPoint
from vmbackup.errors import DamageError, GuestFilesError, NotFoundError, UsageError, VmbackupError
from vmbackup.nbd.address import UnixAddress
from vmbackup.nbd.server import NbdServer
from vmbackup.progress import Progress
from vmbackup.repository.points import Point
from vmbackup.repository.repository import Repository

_log = logging.getLogger("vmbackup.files")
_FORMAT = 0o170000  # the bits of a mode that tell what it is: stat(2)
_TYPES = {
    0o010000: "pipe",
    0o020000: "device",
    0o040000: "directory",
    0o060000: "device",
    0o100000: "file",
    0o120000: "link",
    0o140000: "socket",
}
_DAMAGED_HINT = "take an older restore point, single files by their paths, or restore the disk and mend it by fsck"
_BROKEN_OFF = "file receive cancelled by daemon"  # libguestfs, of an error in the middle of what it sends
_CACHE_BYTES = 64 << 20  # of decoded chunks: the appliance's kernel has a cache of its own


@dataclass(frozen=True)
class Entry:
    """A file of the guest; `size` in bytes, `mtime` in seconds since 1970, `target` where a symbolic link leads."""

    name: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    target: str

    @property
    def is_directory(self) -> bool:
        """Whether it has entries itself."""
        return self.type == "directory"

    @property
    def type(self) -> str:
        """What it is, in a word."""
        return _TYPES.get(self.mode & _FORMAT, "unknown")


@dataclass(frozen=True)
class _Wanted:
    """A file to fetch: the name it gets here, where it lies there, what it is."""

    name: str
    path: str
    told: Entry


class GuestFiles:
    """The file systems of one disk of a restore point (and of those beside it), while they are open."""

    def __init__(self, process: GuestProcess, targets: Sequence[str], started_seconds: float) -> None:
        self.started_seconds = started_seconds
        self._process, self._targets, self._target = process, targets, targets[0]
        self.tree = GuestTree(process, [_filesystem(told, targets) for told in process.ask("filesystems")])

    def filesystems(self) -> list[FileSystem]:
        """All that the disk holds, with the places where the guest has them, as far as these are known."""
        return self.tree.filesystems()

    def damage(self) -> dict[str, str]:
        """What the kernel that reads them has said against file systems so far, by device."""
        with contextlib.suppress(GuestFilesError):  # it is gone; or its library has no such call
            return damage_in(str(self._process.ask("kernel_errors")), self._targets)
        return {}

    def listing(self, path: str) -> list[Entry]:
        """What is in a folder, by name; of a file the file. Raises NotFoundError, GuestFilesError, UsageError."""
        there = self.tree.enter(path)
        told = self._stat(there, path)
        if not told.is_directory:
            return [told]
        return self._entries(there)

    def _entries(self, there: str) -> list[Entry]:
        return sorted(map(_entry, self._process.entries(there)), key=lambda entry: entry.name)

    def fetch(self, paths: Sequence[str], folder: Path, progress: Progress) -> Landed:
        """Writes files and folders below `folder`, under the last part of their names.

        Raises NotFoundError, GuestFilesError, UsageError, TargetError. What was not whole is not there.
        """
        wanted = [self._wanted(path) for path in paths]
        names = [w.name for w in wanted]
        double = next((name for name in names if names.count(name) > 1), None)
        if double is not None:
            raise UsageError(f'two of the paths end in "{double}"', "fetch them into different folders")
        task = f"{self._target} files"
        progress.start(task, None if any(w.told.is_directory for w in wanted) else sum(w.told.size for w in wanted))
        try:
            with Landing(folder, lambda n_bytes: progress.advance(task, n_bytes)) as landing:
                for each in wanted:
                    landing.refuse_existing(each.name)
                for path, each in zip(paths, wanted, strict=True):
                    self.tree.enter(path)  # another file system may be in its place
                    self._fetch(each, landing, progress)
                return landing.landed
        finally:
            progress.finish(task)

    def _fetch(self, wanted: _Wanted, landing: Landing, progress: Progress) -> None:
        if wanted.told.is_directory:
            self._fetch_folder(wanted, landing, progress)
        else:
            with self._process.data("download", wanted.path) as data:
                landing.put_file(wanted.name, data, wanted.told)
        landing.keep(wanted.name)

    def _fetch_folder(self, wanted: _Wanted, landing: Landing, progress: Progress) -> None:
        """As one archive; where that fails, file by file: an archive does not tell which of them are not whole."""
        try:
            with self._process.data("tar", wanted.path) as data:
                landing.put_tree(wanted.name, data)
        except GuestFilesError as error:
            landing.give_up(wanted.name)
            entries = self._entries(wanted.path)
            progress.note(f"{error.message}; now each file by itself, to have those that can be read")
            landing.put_pieces(wanted.name, wanted.told, self._pieces(wanted.path, entries, ""))

    def _pieces(self, folder: str, entries: Sequence[Entry], above: str) -> Iterator[Piece]:
        """What is below a folder, those above others first."""
        for entry in entries:
            path, name = f"{folder.rstrip('/')}/{entry.name}", f"{above}{entry.name}"
            yield Piece(name, entry, functools.partial(self._process.data, "download", path))
            if entry.is_directory:
                try:
                    below = self._entries(path)
                except GuestRefusal:
                    yield Piece(name, None, None)
                else:
                    yield from self._pieces(path, below, f"{name}/")

    def _wanted(self, path: str) -> _Wanted:
        there = self.tree.enter(path)
        told = self._stat(there, path)
        if not told.is_directory and told.type != "file":
            raise GuestFilesError(f"{path} is a device, pipe or socket", "only files and folders are fetched")
        return _Wanted(told.name or self._target, there, told)

    def _stat(self, there: str, path: str) -> Entry:
        name = path.partition(":")[2] or path if path.startswith("/dev/") else path
        told = self._process.ask("stat", path=there)
        name = name.rstrip("/").rpartition("/")[2]
        if name in (".", ".."):
            raise UsageError(f'"{path}" ends in no name', "write the path as it is in the guest")
        return _entry(told | {"name": name})


def _entry(told: dict[str, Any]) -> Entry:
    numbers = {field: int(told[field]) for field in ("mode", "uid", "gid", "size", "mtime")}
    return Entry(name=str(told["name"]), target=str(told["target"]), **numbers)


def _filesystem(told: dict[str, Any], targets: Sequence[str]) -> FileSystem:
    texts = {field: str(told[field]) for field in ("mountable", "type", "label", "uuid", "partuuid", "partlabel")}
    return FileSystem(device=guest_name(texts["mountable"], targets), size=int(told["size"]), **texts)


@contextlib.contextmanager
def guest_files(
    repository: Repository,
    point: Point,
    targets: Sequence[str],
    cache_dir: Path,
    progress: Progress,
    *,
    warn: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[GuestFiles]:
    """Opens the file systems of disks of a restore point, the first one's above all.

    Raises NotFoundError (no such disk), GuestFilesError, DamageError, AccessError.
    """
    _check(point, targets)
    repository.check_may_read()
    begun = clock()
    made = appliance(cache_dir)
    files: GuestFiles | None = None
    with contextlib.ExitStack() as stack:
        run = RunFolder()
        stack.callback(run.remove)
        served = stack.enter_context(contextlib.closing(ServedPoint(repository, point, cache_bytes=_CACHE_BYTES)))
        exports = {target: WatchedExport(served.exports[target]) for target in targets}
        stack.enter_context(NbdServer(exports, UnixAddress(str(run.socket))))
        run.open_socket()
        process = stack.enter_context(GuestProcess(run))
        try:
            progress.note("starting the virtual machine that reads the guest's file systems")
            process.start(made, list(targets))
            files = GuestFiles(process, targets, clock() - begun)
            _log.info("files of %s: started in %.1f s", point.id, files.started_seconds)
            yield files
            damage = files.damage()
        except GuestFilesError as error:
            cause = _cause(error, exports, files)
            if cause is error:
                raise
            raise cause from error
        problem = _damage(exports)
        if problem is not None:
            warn(f"parts of the disk cannot be read; what was read is right: {problem.message}")
            return
        for device, words in damage.items():
            warn(f"{device} is damaged in the guest, and files may be missing: {words}")


def _check(point: Point, targets: Sequence[str]) -> None:
    known = [disk.target for disk in point.disks]
    for target in targets:
        if target not in known:
            raise NotFoundError(f"restore point {point.id} has no disk '{target}'", f"it has {', '.join(known)}")
    if len(set(targets)) != len(targets):
        raise UsageError("a disk is named twice")


def _cause(error: GuestFilesError, exports: dict[str, WatchedExport], files: GuestFiles | None) -> VmbackupError:
    """Damage in the repository; else damage in the guest, in the words of the kernel that met it; else the error."""
    problem = _damage(exports)
    if problem is not None:
        return problem
    damage = files.damage() if files is not None and isinstance(error, GuestRefusal) else {}
    if not damage and _BROKEN_OFF in error.message:
        return GuestFilesError(
            error.message.replace(_BROKEN_OFF, "it broke off, as where a folder is damaged"), _DAMAGED_HINT
        )
    if not damage:
        return error
    device, words = list(damage.items())[-1]
    return GuestFilesError(f"the guest's file system cannot be read: {device} is damaged: {words}", _DAMAGED_HINT)


def _damage(exports: dict[str, WatchedExport]) -> DamageError | None:
    problem = next((export.problem for export in exports.values() if export.problem), None)
    return DamageError(problem) if problem else None
