"""The documents of a restore point (domain.xml) as files beside its disks."""

import os
from pathlib import Path

from vmbackup.engine.images.new_files import NewFiles, there_already
from vmbackup.errors import TargetError


def new_documents(folder: Path, documents: dict[str, bytes]) -> dict[str, bytes]:
    """Those that are not in the folder yet: another disk of the same point may have been restored to it before."""
    new = {}
    for name, data in documents.items():
        path = folder / name
        try:
            same = path.read_bytes() == data
        except FileNotFoundError:
            if path.is_symlink():
                raise there_already(path) from None
            new[name] = data
        except OSError as error:
            raise TargetError(f"cannot read {path}: {error.strerror}") from error
        else:
            if not same:
                raise there_already(path)
    return new


def write_documents(files: NewFiles, documents: dict[str, bytes]) -> None:
    """Writes them, synced, among files in the making. Raises TargetError."""
    for name, data in documents.items():
        with files.create(name) as partial, open(partial, "xb", opener=_private) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def _private(path: str, flags: int) -> int:
    """Images and domain XML are for their owner only: they hold the guest's secrets."""
    return os.open(path, flags, 0o600)
