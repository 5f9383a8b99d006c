"""The files that a booted guest is started from, where its host has them not: beside its overlays, then its disks."""

import contextlib
import filecmp
import os
import shutil
from pathlib import Path

from vmbackup.durable import sync_folder
from vmbackup.engine.boot.images import make_folder
from vmbackup.engine.boot.records import Booted
from vmbackup.engine.images.new_files import PASSABLE, partial, there_already
from vmbackup.engine.images.target_errors import told
from vmbackup.engine.restore.boot_files import FOLDER

_PRIVATE = 0o600


def folder_of(booted: Booted) -> Path:
    """Where they lie as long as the guest hangs on the repository: it goes with the overlays."""
    return Path(booted.folder) / FOLDER


def check_free(booted: Booted) -> None:
    """Whether they can be moved beside its disks to be. Raises TargetError."""
    for _, new in _moves(booted):
        if os.path.lexists(new):
            raise there_already(new)


def move(booted: Booted) -> dict[str, str]:
    """Copies them beside its disks, whole and synced, QEMU's to read; gives new paths by old. May be called again.

    Raises TargetError.
    """
    moves = _moves(booted)
    for old, new in moves:
        make_folder(new.parent, PASSABLE)
        making = partial(new.parent, new.name)
        with told(new):
            if new.exists():
                if not filecmp.cmp(old, new, shallow=False):
                    raise there_already(new)
                continue
            making.unlink(missing_ok=True)
            with old.open("rb") as source, open(making, "xb", opener=_private) as file:
                shutil.copyfileobj(source, file)
                file.flush()
                os.fchown(file.fileno(), *booted.owner)
                os.fsync(file.fileno())
            making.rename(new)
            sync_folder(new.parent)
    return {str(old): str(new) for old, new in moves}


def remove(booted: Booted) -> None:
    """What `move` made, of a guest that is discarded all the same. Raises TargetError."""
    for old, new in _moves(booted):
        with told(new):
            if new.is_file() and filecmp.cmp(old, new, shallow=False):  # else somebody else's
                new.unlink()
            partial(new.parent, new.name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            new.parent.rmdir()


def _moves(booted: Booted) -> list[tuple[Path, Path]]:
    """Where each lies, and where beside its disks to be."""
    folder = folder_of(booted)
    if booted.output is None or not folder.is_dir():
        return []
    return [(old, Path(booted.output) / FOLDER / old.name) for old in sorted(folder.iterdir())]


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, _PRIVATE)
