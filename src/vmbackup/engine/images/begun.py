"""A note beside an image in the making: what it is to become. A restore that is run again goes on by it."""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path

from vmbackup.engine.images.target_errors import in_use, told

_MOST = 64 << 10  # bytes of a note that are read


class Begun:
    """The note of one image, locked from here to `release` or `remove`, so that no two restores write one image.

    `again`: an earlier restore began just the same, and did not end. Raises TargetError while that one runs.
    """

    def __init__(self, note: Path, image: Path, description: Mapping[str, str]) -> None:
        self._note = note
        self._text = json.dumps(dict(description), sort_keys=True).encode()
        with told(note):
            self._fd = self._locked(image)
            self.again = os.pread(self._fd, _MOST, 0) == self._text

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
        with told(self._note):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, self._text, 0)
            os.fsync(self._fd)

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


def _is(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False
