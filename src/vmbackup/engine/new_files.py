"""Files in the making: under a temporary name until all are whole, then published together."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from vmbackup.errors import TargetError


class NewFiles:
    """New files of a folder under `NAME.partial`, published together; what is not published is removed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: list[str] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TargetError(f"cannot make {folder}: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._names:
            self._partial(name).unlink(missing_ok=True)

    def _partial(self, name: str) -> Path:
        return self._folder / f"{name}.partial"

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[Path]:
        """The path to write to. What an earlier, killed restore left there is replaced."""
        path = self._partial(name)
        self._names.append(name)
        try:
            path.unlink(missing_ok=True)
            yield path
        except OSError as error:
            raise TargetError(f"cannot write {path}: {error.strerror}") from error

    def publish(self) -> None:
        """Gives all files their names; refuses to replace any. Raises TargetError."""
        done = []
        try:
            for name in self._names:
                os.link(self._partial(name), self._folder / name)
                done.append(name)
        except OSError as error:
            for published in done:
                (self._folder / published).unlink(missing_ok=True)
            raise TargetError(f"cannot put {self._folder / name} in place: {error.strerror}") from error
        for name in self._names:
            self._partial(name).unlink(missing_ok=True)
        self._names = []
        _sync(self._folder)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def there_already(path: Path) -> TargetError:
    """No file is ever replaced."""
    return TargetError(f"{path} is already there", "choose another folder, or move it away")
