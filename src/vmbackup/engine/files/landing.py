"""Files of a guest, written into a folder here. What is not whole has the name NAME.partial."""

import ctypes
import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Self

from vmbackup.engine.files.landed_tree import DIRECTORY, NEW, FileTold, Landed, NotWholeError, Piece, Tree, finish
from vmbackup.engine.images.new_files import there_already
from vmbackup.errors import TargetError

_PIECE = 1 << 20
_ZEROS = bytes(_PIECE)
_PARTIAL, _MOST_NAME = ".partial", 255  # bytes of a name


class Landing:
    """A folder that files are put into. Raises TargetError."""

    def __init__(self, folder: Path, advance: Callable[[int], None]) -> None:
        self.folder, self._advance = folder, advance
        self.landed = Landed()
        self._put: dict[str, Landed] = {}
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
            descriptor = os.open(partial, NEW, 0o600)
            self._partial.append(partial)
            with os.fdopen(descriptor, "wb") as file:
                self._copy(source, file, told.size)
                finish(file.fileno(), told.mode, told.mtime)
                os.fsync(file.fileno())
        self._put[name] = Landed(files=1, bytes=told.size)

    def put_tree(self, name: str, archive: BinaryIO) -> None:
        """A folder with all that an archive holds; it has no final name before `keep`."""
        self._put_folder(name, lambda tree: tree.fill(archive))

    def put_pieces(self, name: str, told: FileTold, pieces: Iterable[Piece]) -> None:
        """The same of a folder that is damaged: what of it cannot be read is left out."""
        self._put_folder(name, lambda tree: tree.fill_with(told, pieces))

    def _put_folder(self, name: str, fill: Callable[[Tree], None]) -> None:
        partial, landed = self._partial_of(name), Landed()
        with _told(self.folder / name):
            partial.mkdir(mode=0o700)
            self._partial.append(partial)
            descriptor = os.open(partial, DIRECTORY)
            try:
                fill(Tree(partial, descriptor, landed, self._copy))
                _sync_all(descriptor)
            finally:
                os.close(descriptor)
        self._put[name] = landed

    def give_up(self, name: str) -> None:
        """Takes away what was put of a folder."""
        partial = self._partial_of(name)
        if partial in self._partial:
            shutil.rmtree(partial, ignore_errors=True)
            self._partial.remove(partial)

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
        self.landed.add(self._put.pop(name))

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
            raise NotWholeError("a file of the guest could not be read to its end")


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
