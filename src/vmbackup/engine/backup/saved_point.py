"""A restore point's object kept on this host: what is held can be opened again after it was forgotten."""

from pathlib import Path

from vmbackup.durable import replace_file
from vmbackup.errors import NotFoundError, TargetError
from vmbackup.repository.catalog import fetch
from vmbackup.repository.layout import Lineage
from vmbackup.repository.points import Point, decode
from vmbackup.repository.repository import PointList, Repository
from vmbackup.repository.resolve import resolve


def open_point(repository: Repository, found: PointList, text: str, saved: Path | None) -> Point:
    """The point that `text` names; where it is no more, the one that was saved. Raises what `resolve` raises."""
    try:
        return resolve(found, text, domains=True)
    except NotFoundError:
        kept = load_point(repository, saved) if saved is not None else None
        if kept is None:
            raise
        return kept


def save_point(repository: Repository, point: Point, path: Path) -> None:
    """Keeps its object, whole or not at all; nothing where it was kept before. Raises TargetError, DamageError."""
    if path.exists():
        return
    data = fetch(repository.store, point.key)
    try:
        replace_file(path, point.key.encode() + b"\n" + data)
    except OSError as error:
        raise TargetError(f"cannot write {path}: {error.strerror}") from error


def load_point(repository: Repository, path: Path) -> Point | None:
    """The point that was kept, its signature checked; None where none was. Raises DamageError."""
    try:
        key, _, data = path.read_bytes().partition(b"\n")
        _, group, lineage, name = key.decode().split("/")
        place, session = Lineage(group, bytes.fromhex(lineage)), bytes.fromhex(name)
    except (OSError, ValueError):
        return None
    return decode(data, repository.group(group), place, session, repository.writers())
