"""The hooks of a group's sessions on this host: hints where a chunk may lie, from what other runs told."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from vmbackup.repository.cache import Cache
from vmbackup.repository.hooks import HOOK_BYTES
from vmbackup.repository.layout import SESSION_BYTES, Lineage

# A chunk that lies in more histories than these is found by the first ones.
_HINTS = 8
# Hooks that are put in order in one step, of some seconds: others wait for it.
_MERGED = 1 << 20
# Hooks of sessions that are gone are swept out once they are so many of all.
_SWEPT_SHARE = 0.25


class Hint(NamedTuple):
    """A history whose newest point knew a session, and a pack of that session. Nothing of it is certain."""

    lineage: bytes
    session: bytes
    pack: int


class HookCache:
    """The sessions that the newest points of a group's histories name, with their hooks. Never across groups."""

    def __init__(self, cache: Cache, group: str) -> None:
        self._cache, self._group = cache, group

    def __bool__(self) -> bool:
        return bool(self._cache)

    def find(self, chunk_id: bytes) -> list[Hint]:
        """Where a chunk whose id is a hook may lie."""
        rows = self._cache.rows(
            "SELECT members.lineage, sessions.id, hooks.pack FROM hooks"
            " JOIN members ON members.session = hooks.session AND members.grp = ?"
            " JOIN sessions ON sessions.number = hooks.session WHERE hooks.hook = ? LIMIT ?",
            (self._group, _number(chunk_id[:HOOK_BYTES]), _HINTS),
        )
        return [hint for row in rows if _is_hint(hint := Hint(*row))]

    def newest(self) -> dict[bytes, bytes]:
        """The newest session of each history, when it was looked at last."""
        rows = self._cache.rows("SELECT lineage, newest FROM sources WHERE grp = ?", (self._group,))
        return {lineage: newest for lineage, newest in rows if isinstance(lineage, bytes) and isinstance(newest, bytes)}

    def missing(self, sessions: Iterable[bytes]) -> set[bytes]:
        """Those of the sessions whose hooks are not here."""
        known = "SELECT 1 FROM sessions WHERE id = ? AND hooks NOT NULL"
        return {session for session in sessions if not self._cache.rows(known, (session,))}

    def gathered(self) -> float:
        """When the group was looked through last, in seconds since 1970; 0 for never."""
        rows = self._cache.rows("SELECT value FROM facts WHERE name = ?", (f"gathered {self._group}",))
        return float(rows[0][0]) if rows and isinstance(rows[0][0], float | int) else 0.0

    def note_gathered(self, now: float) -> None:
        """The group was looked through."""
        self._cache.change(("INSERT OR REPLACE INTO facts VALUES (?, ?)", [(f"gathered {self._group}", now)]))

    def put(
        self, lineage: bytes, newest: bytes, sessions: Iterable[bytes], hooks: Mapping[bytes, Mapping[int, bytes]]
    ) -> None:
        """What the newest point of a history names, in place of what the former ones did; hooks of new sessions.

        The hooks are found after `merge`.
        """
        place = self._group, lineage
        self._cache.change(("INSERT OR IGNORE INTO sessions (id) VALUES (?)", [(session,) for session in hooks]))
        new: dict[int, Mapping[int, bytes]] = {}
        for session, packs in hooks.items():
            for (number,) in self._cache.rows("SELECT number FROM sessions WHERE id = ? AND hooks IS NULL", (session,)):
                new[number] = packs
        self._cache.change(
            ("INSERT INTO incoming VALUES (?, ?, ?)", _rows(new)),
            ("UPDATE sessions SET hooks = ? WHERE number = ?", [(_count(packs), n) for n, packs in new.items()]),
            ("DELETE FROM members WHERE grp = ? AND lineage = ?", [place]),
            (
                "INSERT OR IGNORE INTO members SELECT number, ?, ? FROM sessions WHERE id = ?",
                [(*place, session) for session in sessions],
            ),
            ("INSERT OR REPLACE INTO sources VALUES (?, ?, ?)", [(*place, newest)]),
        )

    def merge(self) -> None:
        """Puts new hooks among the others, in their order: each page of the file is written once, not once a hook."""
        while rows := self._cache.rows("SELECT max(rowid) FROM (SELECT rowid FROM incoming LIMIT ?)", (_MERGED,)):
            last = rows[0][0]
            if last is None:
                break
            self._cache.change(
                ("INSERT OR IGNORE INTO hooks SELECT * FROM incoming WHERE rowid <= ? ORDER BY 1, 2, 3", [(last,)]),
                ("DELETE FROM incoming WHERE rowid <= ?", [(last,)]),
            )

    def drop(self, lineages: Iterable[bytes]) -> None:
        """Histories that have no point any more."""
        places = [(self._group, lineage) for lineage in lineages]
        self._cache.change(
            ("DELETE FROM members WHERE grp = ? AND lineage = ?", places),
            ("DELETE FROM sources WHERE grp = ? AND lineage = ?", places),
        )

    def sweep(self) -> None:
        """Takes sessions out that no history names any more; their hooks once they are many."""
        # One that has no number of hooks is being put in by another process.
        orphans = self._total(
            "SELECT total(hooks) FROM sessions WHERE hooks NOT NULL AND number NOT IN (SELECT session FROM members)"
        )
        orphans += self._total("SELECT total(value) FROM facts WHERE name = 'orphans'")
        self._cache.change(
            ("DELETE FROM sessions WHERE hooks NOT NULL AND number NOT IN (SELECT session FROM members)", [()])
        )
        if orphans > _SWEPT_SHARE * (orphans + self._total("SELECT total(hooks) FROM sessions")):
            self._cache.change(("DELETE FROM hooks WHERE session NOT IN (SELECT number FROM sessions)", [()]))
            orphans = 0
        self._cache.change(("INSERT OR REPLACE INTO facts VALUES ('orphans', ?)", [(orphans,)]))

    def _total(self, query: str) -> float:
        rows = self._cache.rows(query)
        return float(rows[0][0]) if rows else 0.0


def _count(packs: Mapping[int, bytes]) -> int:
    return sum(map(len, packs.values())) // HOOK_BYTES


def _rows(sessions: Mapping[int, Mapping[int, bytes]]) -> Iterator[tuple[int, int, int]]:
    for session, packs in sessions.items():
        for pack, hooks in packs.items():
            for at in range(0, len(hooks), HOOK_BYTES):
                yield _number(hooks[at : at + HOOK_BYTES]), session, pack


def _number(hook: bytes) -> int:
    """What SQLite can keep of eight bytes."""
    return int.from_bytes(hook, "big", signed=True)


def _is_hint(hint: Hint) -> bool:
    """Whether a row has the form of one: the file may hold anything."""
    return (
        isinstance(hint.lineage, bytes)
        and len(hint.lineage) == Lineage.BYTES
        and isinstance(hint.session, bytes)
        and len(hint.session) == SESSION_BYTES
        and isinstance(hint.pack, int)
    )
