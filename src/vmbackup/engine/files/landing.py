"""Files of a guest, written into a folder here: what they are called, and what they would do, is the guest's choice.

Nothing is written through a symbolic link, nothing replaced, no owner, device or setuid bit taken over. Links are made
last, and only those that stay within what was fetched. What is not whole has the name NAME.partial.
"""

import ctypes
import errno
import os
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self

from vmbackup.engine.images.new_files import there_already
from vmbackup.errors import GuestFilesError, TargetError

_PIECE = 1 << 20
_ZEROS = bytes(_PIECE)
_PARTIAL, _MOST_NAME = ".partial", 255  # bytes of a name
_END = 1024  # bytes of zeros that an archive ends with
_MOST_HEADER = 1 << 20  # bytes of a name or of extended attributes in an archive
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# Readable by whom the guest's owner lets read, writable by us alone: the folder may be public.
_MODE = 0o755
_EXTENDED = {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}


@dataclass(frozen=True)
class LeftOut:
    """A file that was not taken; `path` below the folder that was asked for."""

    path: str
    reason: str


@dataclass
class Landed:
    """What was written."""

    files: int = 0
    directories: int = 0
    links: int = 0
    bytes: int = 0
    left_out: list[LeftOut] = field(default_factory=list)


class FileTold(Protocol):
    """What the guest tells of a file."""

    @property
    def size(self) -> int:
        """In bytes."""

    @property
    def mode(self) -> int:
        """Its bits."""

    @property
    def mtime(self) -> int:
        """Seconds since 1970."""


class _Member(tarfile.TarInfo):
    """A member of bounded headers: the archive comes from a machine that the guest's data may have taken over."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if member.type in _EXTENDED and not 0 <= member.size <= _MOST_HEADER:
            raise tarfile.ReadError("a header is too large")
        return member


class Landing:
    """A folder that files are put into. Raises TargetError."""

    def __init__(self, folder: Path, advance: Callable[[int], None]) -> None:
        self.folder, self._advance = folder, advance
        self.landed = Landed()
        self._partial: list[Path] = []
        with _told(folder):
            if not folder.is_dir():
                folder.mkdir(mode=0o700, parents=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for path in self._partial:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def refuse_existing(self, name: str) -> None:
        """Before anything is read."""
        for path in (self.folder / name, self._partial_of(name)):
            if os.path.lexists(path):
                raise there_already(path)

    def _partial_of(self, name: str) -> Path:
        """The name while it is not whole; that of a long one is cut, at no half of a character."""
        cut = os.fsencode(name)[: _MOST_NAME - len(_PARTIAL)].decode("utf-8", "ignore")
        return self.folder / f"{name if len(os.fsencode(name)) + len(_PARTIAL) <= _MOST_NAME else cut}{_PARTIAL}"

    def put_file(self, name: str, source: BinaryIO, told: FileTold) -> None:
        """A file of its own; it has no final name before `keep`."""
        partial = self._partial_of(name)
        with _told(self.folder / name):
            descriptor = os.open(partial, _NEW, 0o600)
            self._partial.append(partial)
            with os.fdopen(descriptor, "wb") as file:
                self._copy(source, file, told.size)
                _finish(file.fileno(), told.mode, told.mtime)
                os.fsync(file.fileno())
        self.landed.files += 1

    def put_tree(self, name: str, archive: BinaryIO) -> None:
        """A folder with all that an archive holds; it has no final name before `keep`."""
        partial = self._partial_of(name)
        with _told(self.folder / name):
            partial.mkdir(mode=0o700)
            self._partial.append(partial)
            descriptor = os.open(partial, _DIRECTORY)
            try:
                _Tree(partial, descriptor, self.landed, self._copy).fill(archive)
                _sync_all(descriptor)
            finally:
                os.close(descriptor)

    def keep(self, name: str) -> None:
        """Gives what was put its name, once nothing of it is in doubt: who sends it tells of errors at the end."""
        path, partial = self.folder / name, self._partial_of(name)
        with _told(path):
            if not partial.is_dir():
                os.link(partial, path)
                partial.unlink()
            elif os.path.lexists(path):
                raise there_already(path)
            else:
                partial.rename(path)
            self._partial.remove(partial)

    def _copy(self, source: BinaryIO, to: BinaryIO, size: int) -> None:
        """Until the end, which must be at `size`; zeros become holes."""
        copied = 0
        while piece := source.read(_PIECE):
            if piece == _ZEROS[: len(piece)]:
                to.seek(len(piece), os.SEEK_CUR)
            else:
                to.write(piece)
            copied += len(piece)
            self._advance(len(piece))
        to.flush()
        os.ftruncate(to.fileno(), copied)
        if copied != size:
            raise GuestFilesError("a file of the guest could not be read to its end")
        self.landed.bytes += copied


class _WithEnd:
    """An archive that is read to its end, which tarfile does not miss where it was cut between two members."""

    def __init__(self, archive: BinaryIO) -> None:
        self._archive, self._end = archive, b""

    def read(self, size: int) -> bytes:
        """The next bytes."""
        data = self._archive.read(size)
        self._end = (self._end + data)[-_END:]
        return data

    def check(self) -> None:
        """Raises tarfile.ReadError."""
        while self.read(_PIECE):
            pass
        if self._end != bytes(_END):
            raise tarfile.ReadError("it was cut")


class _Tree:
    """A new folder that is filled. While it is, there is no symbolic link in it: paths below it are safe."""

    def __init__(self, path: Path, descriptor: int, landed: Landed, copy: Callable[..., None]) -> None:
        self._path, self._descriptor, self._landed, self._copy = path, descriptor, landed, copy
        self._links: dict[bytes, bytes] = {}
        self._folders: list[tuple[bytes, int, int]] = []

    def fill(self, archive: BinaryIO) -> None:
        """Raises GuestFilesError, OSError."""
        source: Any = _WithEnd(archive)
        given: dict[str, Any] = {"tarinfo": _Member, "encoding": "utf-8", "errors": "surrogateescape"}
        try:
            with tarfile.open(fileobj=source, mode="r|", **given) as members:
                for member in members:
                    with self._too_long(_safe(member.name)):
                        self._add(member, members)
            source.check()
        except (tarfile.TarError, FileNotFoundError, FileExistsError) as error:
            raise GuestFilesError(f"the guest's folder could not be read: {error}") from error
        self._make_links()
        for name, mode, mtime in reversed(self._folders):
            descriptor = os.open(name, _DIRECTORY, dir_fd=self._descriptor)
            try:
                _finish(descriptor, mode | 0o100, mtime)
            finally:
                os.close(descriptor)

    def _add(self, member: tarfile.TarInfo, members: tarfile.TarFile) -> None:
        name = _safe(member.name)
        if member.isdir():
            if name != b".":
                os.mkdir(name, 0o700, dir_fd=self._descriptor)
            self._folders.append((name, member.mode, int(member.mtime)))
            self._landed.directories += 1
        elif member.isreg():
            source = members.extractfile(member)
            with os.fdopen(os.open(name, _NEW, 0o600, dir_fd=self._descriptor), "wb") as file:
                self._copy(source, file, member.size)
                _finish(file.fileno(), member.mode, int(member.mtime))
            self._landed.files += 1
        elif member.islnk():
            self._add_again(name, _safe(member.linkname))
        elif member.issym():
            self._links[name] = _encoded(member.linkname)
        else:
            self._leave_out(name, "a device or pipe")

    def _add_again(self, name: bytes, same: bytes) -> None:
        """A further name of what is there already."""
        if same in self._links:
            self._links[name] = self._links[same]
            return
        try:
            os.link(same, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor, follow_symlinks=False)
        except FileNotFoundError:
            self._leave_out(name, "a further name of what was left out")
        else:
            self._landed.files += 1

    def _make_links(self) -> None:
        """All that may stay; then those go again that lead out by way of others."""
        made = []
        for name, target in self._links.items():
            if target.startswith(b"/"):
                self._leave_out(name, f"a link to {_decoded(target)}")
            else:
                with self._too_long(name):
                    os.symlink(target, name, dir_fd=self._descriptor)
                    made.append((name, target))
        top = os.path.realpath(os.fsencode(self._path))
        out = [(n, t) for n, t in made if not _is_below(os.path.realpath(os.path.join(top, n)), top)]
        for name, target in out:
            os.unlink(name, dir_fd=self._descriptor)
            self._leave_out(name, f"a link to {_decoded(target)}")
        self._landed.links += len(made) - len(out)

    @contextmanager
    def _too_long(self, name: bytes) -> Iterator[None]:
        """A guest may nest folders deeper than a path can say: that costs those, and nothing beside them."""
        try:
            yield
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            self._leave_out(name, "its path is too long here")

    def _leave_out(self, name: bytes, reason: str) -> None:
        self._landed.left_out.append(LeftOut(_decoded(name), reason))


def _safe(name: str) -> bytes:
    parts = [part for part in _encoded(name).split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise GuestFilesError("the guest's folder could not be read: a name leads out of it")
    return b"/".join(parts) or b"."


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _decoded(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _is_below(path: bytes, top: bytes) -> bool:
    return path == top or path.startswith(top + b"/")


def _finish(descriptor: int, mode: int, mtime: int) -> None:
    os.fchmod(descriptor, stat.S_IMODE(mode) & _MODE | 0o600)
    with suppress(OverflowError, OSError):  # a time that there is not here
        os.utime(descriptor, (mtime, mtime))


def _sync_all(descriptor: int) -> None:
    """The whole file system: a call for each of many small files would take minutes."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(descriptor):
        raise OSError(ctypes.get_errno(), "cannot be synced")


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise there_already(path) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TargetError(f"no space is left for {path}", "make space, or choose another folder") from error
        raise TargetError(f"cannot write {path}: {error.strerror}") from error
