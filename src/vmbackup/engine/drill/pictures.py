"""What the last drill of each guest saw on its screen: one picture a guest and repository, on this host only.

A screen may show what is nobody's business, and a picture in the repository would outlive a forgotten restore point.
"""

import contextlib
import os
import re
from datetime import datetime
from pathlib import Path

from vmbackup.durable import replace_file
from vmbackup.errors import TargetError

FOLDER = "pictures"
# Whose it is and when it was taken: so a browser that has the old one asks for the new one.
_NAME = re.compile(r"(?P<guest>[0-9a-f-]{36})-(?P<time>\d{1,16})-(?P<repository>[A-Za-z0-9_.-]{1,63})\.png")
MOST_BYTES = 32 << 20


def keep(state_dir: Path, repository: str, uuid: str, time: datetime, png: bytes) -> Path:
    """Keeps the picture of a guest (its UUID) in the repository of that name, in place of the one before.

    Raises TargetError.
    """
    folder = state_dir / FOLDER
    path = folder / f"{uuid}-{int(time.timestamp())}-{repository}.png"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        before = [old for old in folder.iterdir() if _of(old.name) == (uuid, repository)]
        replace_file(path, png, durable=False)
        for old in before:
            if old != path:
                old.unlink(missing_ok=True)
    except OSError as error:
        raise TargetError(f"cannot keep the picture {path}: {error.strerror}", "free some space") from error
    return path


def newest(state_dir: Path) -> dict[tuple[str, str], str]:
    """The names of the pictures, by guest (its UUID) and repository."""
    found: dict[tuple[str, str], str] = {}
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(state_dir / FOLDER)):
            if (whose := _of(name)) is not None:
                found[whose] = name
    return found


def read(state_dir: Path, name: str) -> bytes | None:
    """The picture of that name; None where there is none."""
    if not _NAME.fullmatch(name):
        return None
    try:
        with open(state_dir / FOLDER / name, "rb") as file:
            return file.read(MOST_BYTES)
    except OSError:
        return None


def _of(name: str) -> tuple[str, str] | None:
    found = _NAME.fullmatch(name)
    return (found["guest"], found["repository"]) if found else None
