"""A note beside an image in the making: what it is to become. A restore that is run again goes on by it."""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from vmbackup.engine.images.target_errors import in_use, told

_MOST = 64 << 10  # bytes of a note that are read
_YOUNG_SECONDS = 60.0  # an empty note that is younger may be of a restore that has not locked it yet


class Begun:
    """The note of one image, locked from here to `release` or `remove`, so that no two restores write one image.

    `again`: an earlier restore began just the same, and did not end. Raises TargetError while that one runs.
    """

    def __init__(self, note: Path, image: Path, description: Mapping[str, str]) -> None:
        self._note = note
        self._text = _text(description)
        with told(note):
            self._fd = self._locked(image)
            self._before = os.pread(self._fd, _MOST, 0)
        self.again = self._before == self._text

    def _locked(self, image: Path) -> int:
        """The note's descriptor. One that its last holder removed meanwhile is of no use."""
        while True:
            fd = os.open(self._note, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is(fd, self._note):
                    return fd
            except BlockingIOError:
                os.close(fd)
                raise in_use(image, "another restore writes it") from None
            os.close(fd)

    def write(self) -> None:
        """Says, durably, what is begun. Raises TargetError."""
        self._put(self._text)

    def _put(self, text: bytes) -> None:
        with told(self._note):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, text, 0)
            os.fsync(self._fd)

    def give_up(self) -> None:
        """Nothing was written to the image: the note is what it was before, or gone if it was empty."""
        if not self._before:
            self.remove()
        elif self._fd >= 0:
            self._put(self._before)
            self.release()

    def remove(self) -> None:
        """It is done, or given up."""
        if self._fd >= 0:
            self._note.unlink(missing_ok=True)
            self.release()

    def release(self) -> None:
        """Another restore may go on. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def was_begun(note: Path, description: Mapping[str, str]) -> bool:
    """Whether an earlier restore began just so, and did not end. Changes nothing."""
    try:
        return note.read_bytes() == _text(description)
    except OSError:
        return False


def _text(description: Mapping[str, str]) -> bytes:
    return json.dumps(dict(description), sort_keys=True).encode()


def sweep(folder: Path, names: str = "*.json") -> None:
    """Removes empty notes that nobody holds: of restores that were killed before they wrote anything. Never raises."""
    with contextlib.suppress(OSError):
        for note in folder.glob(names):
            with contextlib.suppress(OSError):
                _remove_empty(note)


def _remove_empty(note: Path) -> None:
    found = note.lstat()
    if found.st_size or time.time() - found.st_mtime < _YOUNG_SECONDS:
        return
    fd = os.open(note, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is(fd, note) and not os.fstat(fd).st_size:
            note.unlink()
    finally:
        os.close(fd)


def _is(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False
