"""The passphrase of an encrypted image, handed to QEMU's programs by an open file: in no file system, in no `ps`."""

import os
from typing import Self

KEY_ID = "key"  # what QEMU calls it


class QemuSecret:
    """A passphrase in memory. A context manager; `arguments` are for a program that inherits `fd`."""

    def __init__(self, passphrase: bytes) -> None:
        self.fd = os.memfd_create("passphrase", os.MFD_CLOEXEC)
        with open(self.fd, "wb", closefd=False) as file:
            file.write(passphrase)

    @property
    def arguments(self) -> list[str]:
        """What tells the program of it."""
        return ["--object", f"secret,id={KEY_ID},file=/proc/self/fd/{self.fd}"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)
