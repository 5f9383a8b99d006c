"""A file system that fails when it is told to: ext4 on a loop device, on a file in a tmpfs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
from pathlib import Path
from typing import Self

from .session import Lab

_SIZE = 64 << 20
_SHUTDOWN, _WITHOUT_A_SYNC = 0x8004587D, 2  # EXT4_IOC_SHUTDOWN, EXT4_GOING_FLAGS_NOLOGFLUSH


class BadStorage:
    """On a folder of the lab; its QEMUs see it that start afterwards. A context manager."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self._lab, self.folder = lab, folder
        self._stack = contextlib.ExitStack()
        self._room: Path

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._room = self._lab.new_folder("storage")
            stack.callback(self._room.rmdir)
            _run("mount", "-t", "tmpfs", "-o", f"size={_SIZE + (1 << 20)}", "tmpfs", str(self._room))
            stack.callback(_run, "umount", "--lazy", str(self._room))   # the device needs a moment to let go of it
            image = self._room / "image"
            with image.open("wb") as file:
                file.truncate(_SIZE)
            # A journal would be what fails first, and be noticed by the next write.
            _run("mkfs.ext4", "-q", "-b", "4096", "-m", "0", "-O", "^has_journal", str(image))
            device = _run("losetup", "--find", "--show", str(image))
            stack.callback(_run, "losetup", "--detach", device)
            _run("mount", device, str(self.folder))
            stack.callback(_run, "umount", str(self.folder))
            self.folder.chmod(0o711)
            (self.folder / "lost+found").rmdir()
            stack.enter_context(self._lab.sees(self.folder))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Takes it away; may be called again."""
        self._stack.close()

    def shut_down(self) -> None:
        """From here on each access is an I/O error."""
        handle = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(handle, _SHUTDOWN, struct.pack("I", _WITHOUT_A_SYNC))
        finally:
            os.close(handle)

    def sync(self) -> None:
        """What was written goes to the device."""
        _run("sync", "--file-system", str(self.folder))

    def lose(self) -> bool:
        """Loses what was written since the last `sync`, and is in no file's old blocks: the page cache too forgets it.

        As a device that fails does, and memory that runs short. False where all was on the device already.
        """
        self._take_nothing()
        try:
            self.sync()
        except subprocess.CalledProcessError:
            self._forget()
            return True
        (self._room / "rest").unlink()
        return False

    def _take_nothing(self) -> None:
        """The device takes no block that it has not had yet."""
        with contextlib.suppress(OSError), (self._room / "rest").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def _forget(self) -> None:
        for path in self.folder.iterdir():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
