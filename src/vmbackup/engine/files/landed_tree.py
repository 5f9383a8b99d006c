"""A folder of the guest's, filled: of an archive, or file by file. What its files are called is the guest's choice.

Nothing is written through a symbolic link, nothing replaced, no owner, device or setuid bit taken over. Links are made
last, and only those that stay within what was fetched.
"""

import errno
import os
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self

from vmbackup.engine.files.guest_process import GuestRefusal
from vmbackup.errors import GuestFilesError

_PIECE = 1 << 20
_END = 1024  # bytes of zeros that an archive ends with
_MOST_HEADER = 1 << 20  # bytes of a name or of extended attributes in an archive
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# Readable by whom the guest's owner lets read, writable by us alone: the folder may be public.
_MODE = 0o755
# Of a folder that is damaged: its names say what cannot be.
_NO_PLACE = (FileExistsError, FileNotFoundError, NotADirectoryError)
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

    def add(self, other: "Landed") -> None:
        """What was written too."""
        self.files += other.files
        self.directories += other.directories
        self.links += other.links
        self.bytes += other.bytes
        self.left_out += other.left_out


class NotWholeError(GuestFilesError):
    """A file ended too early, or too late."""


class FileTold(Protocol):
    """What the guest tells of a file."""

    @property
    def size(self) -> int:
        """In bytes."""

    @property
    def mode(self) -> int:
        """Its bits."""

    @property
    def mtime(self) -> float:
        """Seconds since 1970."""


class PieceTold(FileTold, Protocol):
    """What the guest tells of what is in a folder."""

    @property
    def type(self) -> str:
        """In a word: file, directory, link, ..."""

    @property
    def target(self) -> str:
        """Where a link leads."""


@dataclass(frozen=True)
class Piece:
    """What is below a folder, `told` None for a folder whose entries cannot be read; `data` gives a file's."""

    name: str
    told: PieceTold | None
    data: Callable[[], AbstractContextManager[BinaryIO]] | None


class _Member(tarfile.TarInfo):
    """A member of bounded headers: the archive comes from a machine that the guest's data may have taken over."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if member.type in _EXTENDED and not 0 <= member.size <= _MOST_HEADER:
            raise tarfile.ReadError("a header is too large")
        return member


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


class Tree:
    """A new folder that is filled. While it is, there is no symbolic link in it: paths below it are safe."""

    def __init__(self, path: Path, descriptor: int, landed: Landed, copy: Callable[..., None]) -> None:
        self._path, self._descriptor, self._landed, self._copy = path, descriptor, landed, copy
        self._links: dict[bytes, bytes] = {}
        self._folders: list[tuple[bytes, int, float]] = []

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
        except (tarfile.TarError, *_NO_PLACE) as error:
            raise GuestFilesError(f"the guest's folder could not be read: {error}") from error
        self._complete()

    def fill_with(self, told: FileTold, pieces: Iterable[Piece]) -> None:
        """Those that can be read. Raises GuestFilesError, OSError."""
        self._add_folder(b".", told.mode, told.mtime)
        for piece in pieces:
            name = _safe(piece.name)
            with self._too_long(name):
                try:
                    self._add_piece(name, piece)
                except _NO_PLACE:
                    self._leave_out(name, "its name is there twice")
        self._complete()

    def _add_piece(self, name: bytes, piece: Piece) -> None:
        told = piece.told
        if told is None:
            self._leave_out(name, "what is in it cannot be read")
        elif told.type == "directory":
            self._add_folder(name, told.mode, told.mtime)
        elif told.type == "link":
            self._links[name] = _encoded(told.target)
        elif told.type == "file" and piece.data is not None:
            try:
                with piece.data() as source:
                    self._add_file(name, source, told)
            except (GuestRefusal, NotWholeError):
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=self._descriptor)
                self._leave_out(name, "it cannot be read")
            else:
                self._landed.files += 1
                self._landed.bytes += told.size
        else:
            self._leave_out(name, "it cannot be read" if told.type == "unknown" else "a device or pipe")

    def _add_folder(self, name: bytes, mode: int, mtime: float) -> None:
        if name != b".":
            os.mkdir(name, 0o700, dir_fd=self._descriptor)
        self._folders.append((name, mode, mtime))
        self._landed.directories += 1

    def _add_file(self, name: bytes, source: Any, told: FileTold) -> None:
        with os.fdopen(os.open(name, NEW, 0o600, dir_fd=self._descriptor), "wb") as file:
            self._copy(source, file, told.size)
            finish(file.fileno(), told.mode, told.mtime)

    def _complete(self) -> None:
        self._make_links()
        for name, mode, mtime in reversed(self._folders):
            descriptor = os.open(name, DIRECTORY, dir_fd=self._descriptor)
            try:
                finish(descriptor, mode | 0o100, mtime)
            finally:
                os.close(descriptor)

    def _add(self, member: tarfile.TarInfo, members: tarfile.TarFile) -> None:
        name = _safe(member.name)
        if member.isdir():
            self._add_folder(name, member.mode, member.mtime)
        elif member.isreg():
            self._add_file(name, members.extractfile(member), member)
            self._landed.files += 1
            self._landed.bytes += member.size
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
                    try:
                        os.symlink(target, name, dir_fd=self._descriptor)
                        made.append((name, target))
                    except _NO_PLACE:
                        self._leave_out(name, "its name is there twice")
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


def finish(descriptor: int, mode: int, mtime: float) -> None:
    """Its mode and time, as far as they are taken over."""
    os.fchmod(descriptor, stat.S_IMODE(mode) & _MODE | 0o600)
    with suppress(OverflowError, OSError):  # a time that there is not here
        os.utime(descriptor, (int(mtime), int(mtime)))
