"""The configuration in force: what every run is given, whatever becomes of the file meanwhile."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vmbackup.config.load import load_text
from vmbackup.config.models import Config

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@dataclass(frozen=True)
class InForce:
    """A configuration as it was read: `text` is what runs are given, `file` where it stands (None: there is none)."""

    config: Config
    text: bytes
    file: Path | None

    @classmethod
    def read(cls, file: Path | None) -> "InForce":
        """Of a file, or the defaults for None. Raises ConfigError with every mistake."""
        config, text = load_text(file)
        return cls(config, text.encode(), file)


@contextlib.contextmanager
def in_memory(text: bytes) -> Iterator[int]:
    """A file in memory that nobody can change, as a descriptor: a child that is given it reads /dev/fd/N."""
    file = os.memfd_create("vmbackup-config", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(file, "wb", closefd=False) as writer:
            writer.write(text)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
        yield file
    finally:
        os.close(file)
