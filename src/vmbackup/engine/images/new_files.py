"""Files in the making: under a temporary name until all are whole, then published together."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from vmbackup.durable import sync_folder
from vmbackup.engine.images.begun import Begun, sweep
from vmbackup.errors import TargetError

# What link(2) says on FAT, exFAT, many a FUSE and SMB.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)

PASSABLE = 0o711  # of a folder: QEMU's user passes to what is its own, and nobody else needs to list it


@dataclass
class Making:
    """An image in the making. `again`: a part of it was written by an earlier restore of just the same."""

    path: Path
    again: bool
    kept: bool = False

    def keep(self) -> None:
        """It stays if the restore fails: the same command goes on with it."""
        self.kept = True


class NewFiles:
    """New files of a folder under `NAME.partial`, published together; what is neither published nor kept is removed.

    A name may lead into a folder below it, which is made for that.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: list[str] = []
        self._makings: dict[str, tuple[Making, Begun]] = {}
        self._reserved: list[Begun] = []
        self._made: list[Path] = []  # folders below
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TargetError(f"cannot make {folder}: {error.strerror}") from error
        sweep(folder, "*.partial.json")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._names:
            making, begun = self._makings.pop(name, (None, None))
            if making is None or not making.kept:
                self._partial(name).unlink(missing_ok=True)
            if begun is not None and making is not None:
                begun.release() if making.kept else begun.remove()
        self._free()
        for folder in self._made:
            with contextlib.suppress(OSError):  # with something in it
                folder.rmdir()

    @property
    def kept(self) -> list[Path]:
        """What stays if the restore fails now."""
        return [making.path for making, _ in self._makings.values() if making.kept]

    def _partial(self, name: str) -> Path:
        return partial(self._folder, name)

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[Path]:
        """The path to write to. What an earlier, killed restore left there is replaced."""
        path = self._partial(name)
        self._names.append(name)
        try:
            self._make_folder(path.parent)
            path.unlink(missing_ok=True)
            yield path
        except OSError as error:
            raise TargetError(f"cannot write {path}: {error.strerror}") from error

    def drop(self, name: str) -> None:
        """One that is not to be made after all."""
        self._partial(name).unlink(missing_ok=True)
        self._names.remove(name)

    def _make_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            folder.mkdir()
            self._made.append(folder)
            folder.chmod(PASSABLE)  # whatever the umask

    @contextlib.contextmanager
    def begin(self, name: str, description: Mapping[str, str]) -> Iterator[Making]:
        """An image to write, or to go on with: what lies there is replaced unless it was begun as `description` says.

        Raises TargetError, also while another restore writes it.
        """
        path = self._partial(name)
        begun = Begun(self._folder / f"{name}.partial.json", path, description)
        making = Making(path, begun.again and path.exists())
        self._names.append(name)
        self._makings[name] = making, begun
        if making.again:
            making.keep()
        try:
            if not making.again:
                path.unlink(missing_ok=True)
                begun.write()
            yield making
        except OSError as error:
            raise TargetError(f"cannot write {path}: {error.strerror}") from error

    def reserve(self, name: str, description: Mapping[str, str]) -> None:
        """No other restore makes a file of that name meanwhile. Raises TargetError where one does."""
        begun = Begun(self._folder / f"{name}.partial.json", self._partial(name), description)
        self._reserved.append(begun)
        begun.write()

    def publish(self) -> None:
        """Gives all files their names; refuses to replace any. Raises TargetError."""
        with contextlib.ExitStack() as undo:
            self._give_names(undo)
            undo.pop_all()
        self._sync()
        for name in self._names:
            self._partial(name).unlink(missing_ok=True)
        for _, begun in self._makings.values():
            begun.remove()
        self._free()
        self._sync()
        self._names, self._makings = [], {}

    def _sync(self) -> None:
        for folder in sorted({(self._folder / name).parent for name in self._names} - {self._folder}):
            sync_folder(folder)
        sync_folder(self._folder)

    def _give_names(self, undo: contextlib.ExitStack) -> None:
        for name in self._names:
            if not _is_ours(self._folder, name):
                path = self._folder / name
                try:
                    undo.callback(_give_name(self._partial(name), path))
                except OSError as error:
                    raise TargetError(f"cannot put {path} in place: {error.strerror}") from error

    def _free(self) -> None:
        while self._reserved:
            self._reserved.pop().remove()


def partial(folder: Path, name: str) -> Path:
    """What a file in the making is called."""
    return folder / f"{name}.partial"


def is_in_the_way(folder: Path, name: str) -> bool:
    """Whether another file has the name: not one that a restore, killed as it gave the names, gave it."""
    return os.path.lexists(folder / name) and not _is_ours(folder, name)


def _is_ours(folder: Path, name: str) -> bool:
    try:
        return os.path.samestat(os.lstat(folder / name), os.lstat(partial(folder, name)))
    except FileNotFoundError:
        return False


def _give_name(made: Path, path: Path) -> Callable[[], None]:
    """Gives a file its name as well, or instead where its file system knows no links; returns what undoes it."""
    try:
        os.link(made, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        os.rename(made, path)
        return lambda: os.rename(path, made)
    return lambda: path.unlink(missing_ok=True)


def there_already(path: Path) -> TargetError:
    """No file is ever replaced."""
    return TargetError(f"{path} is already there", "choose another folder, or move it away")
