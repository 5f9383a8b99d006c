"""Writes of scratch files that their storage did not take.

QEMU writes scratch through the page cache and never syncs it. What the storage then fails to take is dropped when
memory is wanted for something else, and reads as zeros or as what was there before: without an error to QEMU, or to
who reads from it. The kernel tells of the failure who has the file open (errseq_t, Linux 4.13).
"""

import ctypes
import errno
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from vmbackup.durable import sync_folder

_LIBC = ctypes.CDLL(None, use_errno=True)
_WAIT_BEFORE = 1  # SYNC_FILE_RANGE_WAIT_BEFORE
# Bytes: beyond any file. Nothing is written or waited for then, and a failure at any place is told.
_FAR = 1 << 62


class LostWrites:
    """Of these files, all in one folder; to be made before any of what they hold can have been dropped."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._guard = threading.Lock()
        self._trouble: str | None = None
        self._folder = os.path.dirname(paths[0]) if paths else None
        self._files: list[int] = []
        for path in paths:
            try:
                self._files.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            except FileNotFoundError:
                continue
            except OSError as error:
                self._trouble = error.strerror

    def found(self, *, folder: bool = False) -> str | None:
        """What the storage said, in the system's words. `folder`: its file system is asked too, which writes to it."""
        with self._guard:
            for file in self._files:
                if _LIBC.sync_file_range(file, ctypes.c_longlong(_FAR), ctypes.c_longlong(1), _WAIT_BEFORE):
                    self._trouble = self._trouble or os.strerror(ctypes.get_errno())
            if folder and self._folder and self._files:
                try:
                    sync_folder(Path(self._folder))
                except OSError as error:
                    if error.errno != errno.EINVAL:  # its file system cannot
                        self._trouble = self._trouble or error.strerror
            return self._trouble

    def close(self) -> None:
        """Lets go of the files, so that their space is free once they are deleted. May be called again."""
        with self._guard:
            while self._files:
                os.close(self._files.pop())
