"""The folder of new images, looked at before anything is read: whether it is fit for a restore of this point."""

import json
import os
from pathlib import Path

from vmbackup.errors import TargetError
from vmbackup.repository.points import Point

_NOTE = ".partial.json"  # what an image in the making is to become (images/begun.py)
_MOST = 64 << 10  # bytes of a note that are read


def refuse_unfit(folder: Path, point: Point) -> None:
    """Raises TargetError where the folder cannot be made or written, or holds half of another restore point."""
    _refuse_unwritable(folder)
    _refuse_unfinished(folder, point)


def _refuse_unwritable(folder: Path) -> None:
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not there.is_dir():
        raise TargetError(f"cannot write to {folder}: {there} is no folder", "name another folder with --output")
    if not os.access(there, os.W_OK | os.X_OK, effective_ids=True):
        raise TargetError(f"cannot write to {folder}: {_reason(there)}", "name another folder with --output")


def _reason(folder: Path) -> str:
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        return f"the file system of {folder} is read-only"
    return f"this user may not make files in {folder}"


def _refuse_unfinished(folder: Path, point: Point) -> None:
    for note in sorted(folder.glob(f"*{_NOTE}")):
        image = note.with_suffix("")
        begun = _read(note)
        if image.exists() and begun.get("point", point.key) != point.key:
            whose = begun.get("named", "another restore point")
            raise TargetError(
                f"{folder} holds a restore of {whose} that was not finished ({image.name})",
                f"restore that one again to finish it, delete {image.name} and {note.name} to give it up,"
                " or choose another folder",
            )


def _read(note: Path) -> dict[str, str]:
    """What the note says; nothing where that makes no sense."""
    try:
        with open(note, "rb") as file:
            said = json.loads(file.read(_MOST))
    except (OSError, ValueError):
        return {}
    return {name: value for name, value in said.items() if isinstance(value, str)} if isinstance(said, dict) else {}
