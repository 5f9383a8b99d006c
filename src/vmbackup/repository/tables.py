"""The tables of moves of a history, as they hold now."""

import contextlib
from typing import TYPE_CHECKING

from vmbackup.errors import DamageError
from vmbackup.repository import points, tombstones
from vmbackup.repository.layout import Lineage
from vmbackup.repository.moves import Table
from vmbackup.repository.points import MOVES
from vmbackup.storage_backends import ObjectMissing, ObjectTruncated

if TYPE_CHECKING:
    from vmbackup.repository.repository import Repository


def read(repository: "Repository", lineage: Lineage, known: frozenset[bytes]) -> list[Table] | None:
    """The tables that count of a history; None where there are no others than the `known` ones.

    One listing, and the first bytes of each commit that is not known, where nothing was moved.
    """
    store = repository.store
    found: dict[bytes, Table] = {}
    there: set[bytes] = set()
    for entry in store.list(lineage.prefix("points")):
        session = bytes.fromhex(entry.key.rpartition("/")[2])
        if session in known:
            there.add(session)
            continue
        with contextlib.suppress(ObjectMissing, ObjectTruncated, DamageError):
            if entry.size > points.HEAD and points.kind_of(store.get(entry.key, 0, points.HEAD)) == MOVES:
                point = repository.read_point(lineage, session)
                if point is not None and _counts(repository, point):
                    found[session] = point.move_table()
    if not found and there == known:
        return None
    for session in known & there:
        with contextlib.suppress(DamageError):
            if (point := repository.read_point(lineage, session)) and _counts(repository, point):
                found[session] = point.move_table()
    gone = {session for _, session in tombstones.trashed(repository, lineage.group, lineage)}
    gone |= tombstones.dead(repository, lineage.group)
    return [table for session, table in found.items() if session not in gone]


def _counts(repository: "Repository", point: points.Point) -> bool:
    """Whether its signer may move, and was not revoked before."""
    return repository.writers()[point.writer].may_collect(point.lineage.group) and repository.stands(point)
