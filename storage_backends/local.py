"""A store in a folder: a file an object, made once and durably."""

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from vmbackup.storage_backends.base import (
    MAX_GET,
    Buffer,
    Entry,
    ObjectExists,
    ObjectMissing,
    ObjectTooLarge,
    ObjectTruncated,
    ProbeResult,
    StoreError,
    StoreFull,
    StoreMissing,
    StoreUnavailable,
    StoreUnfit,
    check_key,
)
from vmbackup.storage_backends.files import (
    TEMPORARY_PREFIX,
    create_once,
    holds_durably,
    make_folder,
    open_regular,
    sync_folder,
)
from vmbackup.storage_backends.probe import probe_store

_STALE_AFTER = 86400.0  # seconds; a put takes seconds, so what a temporary file this old belonged to is dead
_SMALL = 1 << 20  # bytes: pins, points, lists of what is forgotten and condemned
_SPARE = 8 << 20  # bytes
_FULL_HINT = "forget and prune restore points; where even they find no space, free a MiB by other means"
_ATTEMPTS = 3  # a folder or object that vanishes between two calls is another process's doing: look again
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_HINTS = {
    errno.EACCES: "run as the user that the folder belongs to, or give this one the right to write there",
    errno.EPERM: "run as the user that the folder belongs to, or give this one the right to write there",
    errno.EROFS: "mount the file system writable",
    errno.EIO: "the disk or the server behind it fails: see the kernel's log",
    errno.EINVAL: "keep the repository on a file system that has hard links, such as ext4, XFS or NFS",
}


class LocalStore:
    """Objects as files of mode 0600 below a folder.

    A put writes a temporary file beside its target, syncs it, links it without replacing, and syncs the
    folder and every folder above that this process has not synced yet. A list sweeps temporary files older
    than a day.
    """

    def __init__(self, root: Path, *, create: bool = False) -> None:
        self._root = str(root)
        self._synced: set[str] = set()
        if create:
            with self._translated("make"):
                _make_with_parents(self._root)
        self._inode: int | None = None
        self._inode = self._root_inode()

    @property
    def url(self) -> str:
        """The address that `open_store` takes."""
        return "file://" + quote(self._root)

    @property
    def place(self) -> str:
        """The same."""
        return self.url

    def put(self, key: str, data: Buffer) -> None:
        """Create the object, once and durably. Raises as Store.put says."""
        folder, name = os.path.split(self._path(key))
        with self._translated(f"store {key} in"), memoryview(data) as whole, whole.cast("B") as view:
            self._spare(view.nbytes)
            for _ in range(_ATTEMPTS):
                try:
                    self._ensure_folder(folder)
                    if create_once(folder, name, view) or holds_durably(folder, name, view):
                        return
                except FileNotFoundError:
                    self._root_inode()
                    self._synced = set()
                else:
                    raise ObjectExists(key)
        raise StoreUnavailable(f"cannot store {key} in {self._root}: its folder is being removed meanwhile")

    def _spare(self, n_bytes: int) -> None:
        """Packs leave some space for the small objects by which space is freed. Raises StoreFull."""
        if n_bytes > _SMALL:
            space = os.statvfs(self._root)
            if space.f_bavail * space.f_frsize < n_bytes + _SPARE:
                raise StoreFull(f"no space is left in {self._root}: {_SPARE >> 20} MiB stay free for prune", _FULL_HINT)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return exactly the bytes asked for. Raises as Store.get says."""
        with self._opened(key) as (fd, size):
            if length is None and size > MAX_GET:
                raise ObjectTooLarge(key, size)
            end = max(size, offset) if length is None else offset + length
            if end > size:
                raise ObjectTruncated(key, size, end)
            data = os.pread(fd, end - offset, offset)
            while len(data) < end - offset:
                more = os.pread(fd, end - offset - len(data), offset + len(data))
                if not more:
                    raise ObjectTruncated(key, offset + len(data), end)
                data += more
            return data

    def read_into(self, key: str, offset: int, buffer: memoryview) -> None:
        """Fill the whole buffer. Raises as Store.get says."""
        with self._opened(key) as (fd, size):
            end = offset + buffer.nbytes
            while buffer.nbytes:
                got = os.preadv(fd, [buffer], end - buffer.nbytes) if end <= size else 0
                if not got:
                    raise ObjectTruncated(key, min(size, end - buffer.nbytes), end)
                buffer = buffer[got:]

    def stat(self, key: str) -> Entry:
        """Return size and time of an object. Raises ObjectMissing."""
        with self._translated(f"read {key} in"):
            try:
                found = os.stat(self._path(key), follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                self._root_inode()
                raise ObjectMissing(key) from None
        if not stat.S_ISREG(found.st_mode):
            raise ObjectMissing(key)
        return Entry(key, found.st_size, found.st_mtime)

    def list(self, prefix: str, after: str = "") -> Iterator[Entry]:
        """Yield the entries in order of key, as Store.list says; one folder's names are held at a time."""
        folder = prefix[: prefix.rfind("/") + 1]
        if {"", ".", ".."} & set(folder.split("/")[:-1]):
            return
        self._root_inode()
        with self._translated("list"):
            yield from self._walk(os.fsencode(folder), os.fsencode(prefix), os.fsencode(after))

    def delete(self, key: str) -> None:
        """Remove an object for good. No error where there is none."""
        path = self._path(key)
        with self._translated(f"delete {key} in"):
            try:
                os.unlink(path)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                self._root_inode()
            else:
                sync_folder(os.path.dirname(path))

    def lock(self, key: str, seconds: float) -> float:  # noqa: ARG002  as the Protocol has it
        """Raise StoreUnfit: whoever may write a folder may delete from it."""
        raise StoreUnfit(f"{self._root} is a folder, which locks nothing", "use a bucket with object lock")

    def probe(self, *, powers: bool = False) -> ProbeResult:  # noqa: ARG002  as the Protocol has it
        """Try with a throw-away object what a repository relies on. Raises as Store.put says."""
        self._root_inode()
        with self._translated("look at"):
            space = os.statvfs(self._root)
        return probe_store(self, space.f_bavail * space.f_frsize)

    def close(self) -> None:
        """Nothing is held between calls."""

    def _path(self, key: str) -> str:
        check_key(key)
        return f"{self._root}/{key}"

    def _root_inode(self) -> int:
        """Return the root's inode. Raises StoreMissing where it is gone, or is another than at the opening.

        So an unmounted disk is not taken for one that lost its objects. The device's number is not compared:
        an automounter changes it.
        """
        try:
            found = os.stat(self._root)
        except (FileNotFoundError, NotADirectoryError):
            found = None
        except OSError as error:
            raise self._failure("look at", error) from error
        if found is None or not stat.S_ISDIR(found.st_mode):
            raise StoreMissing(f"there is no folder {self._root}", "mount it, or correct the url")
        if self._inode not in (None, found.st_ino):
            raise StoreMissing(f"{self._root} is no longer the folder it was", "mount its disk again")
        return found.st_ino

    def _ensure_folder(self, folder: str) -> None:
        """Make the folder and those above it, their names durable: also those that another process made."""
        if folder == self._root:
            self._root_inode()
        elif folder not in self._synced:
            self._ensure_folder(os.path.dirname(folder))
            make_folder(folder)
            self._synced.add(folder)

    @contextlib.contextmanager
    def _opened(self, key: str) -> Iterator[tuple[int, int]]:
        """Give a descriptor of the object and its size in bytes."""
        path = self._path(key)
        with self._translated(f"read {key} in"):
            try:
                fd = open_regular(path)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                self._root_inode()
                raise ObjectMissing(key) from None
            try:
                yield fd, os.fstat(fd).st_size
            finally:
                os.close(fd)

    def _walk(self, folder: bytes, prefix: bytes, after: bytes) -> Iterator[Entry]:
        """Yield what lies below `folder` ("" or ending in a slash), depth first: the order of the keys."""
        for path in sorted(self._names(folder, prefix, after)):
            if path.endswith(b"/"):
                yield from self._walk(path, prefix, after)
                continue
            try:
                found = os.stat(os.fsencode(self._root) + b"/" + path, follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                continue
            yield Entry(os.fsdecode(path), found.st_size, found.st_mtime)

    def _names(self, folder: bytes, prefix: bytes, after: bytes) -> Iterator[bytes]:
        """Yield the paths in one folder that can lead to an entry; those of folders end in a slash."""
        try:
            with os.scandir(os.fsencode(self._root) + b"/" + folder) as entries:
                for entry in entries:
                    path = folder + entry.name
                    if entry.is_dir():
                        below = path + b"/"
                        wanted = below.startswith(prefix) or prefix.startswith(below)
                        if wanted and (below > after or after.startswith(below)) and path != b"lost+found":
                            yield below
                    elif entry.name.startswith(TEMPORARY_PREFIX.encode()):
                        _sweep(entry)
                    elif path.startswith(prefix) and path > after:
                        yield path
        except (FileNotFoundError, NotADirectoryError):
            self._root_inode()

    @contextlib.contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._failure(doing, error) from error

    def _failure(self, doing: str, error: OSError) -> StoreError:
        message = f"cannot {doing} {self._root}: {error.strerror or error}"
        if error.errno in _FULL:
            return StoreFull(message, _FULL_HINT)
        return StoreUnavailable(message, _HINTS.get(error.errno or 0, ""))


def _make_with_parents(folder: str) -> None:
    if not os.path.isdir(folder):
        _make_with_parents(os.path.dirname(folder))
        make_folder(folder)


def _sweep(entry: "os.DirEntry[bytes]") -> None:
    with contextlib.suppress(OSError):  # it went by itself, or is not ours to remove: no matter for a list
        if time.time() - entry.stat(follow_symlinks=False).st_mtime > _STALE_AFTER:
            os.unlink(entry.path)
