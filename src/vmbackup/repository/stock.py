"""Which packs are in the store, and whole, as far as names and sizes tell: one listing a history."""

from collections.abc import Container, Iterable

from vmbackup.errors import DamageError, RepositoryError, VmbackupError
from vmbackup.repository.catalog import Catalog
from vmbackup.repository.condemned import ObjectName
from vmbackup.repository.crypto import DATA
from vmbackup.repository.index import PackEntry
from vmbackup.repository.layout import SessionRef


class Stock:
    """The packs of a group, listed a history at a time, when one is first asked for. One thread.

    `own`: only that history is listed so; of others, which can be long, the data packs of sessions that are asked for.
    """

    def __init__(self, catalog: Catalog, own: bytes | None = None) -> None:
        self._catalog, self._own = catalog, own
        self._listed: dict[str, dict[str, int]] = {}

    def size(self, ref: SessionRef, kind: str, number: int) -> int | None:
        """Bytes of a pack in the store; None where it is missing."""
        lineage = self._catalog.lineage(ref)
        prefix = lineage.prefix(kind, ref.session if self._is_foreign(ref) else None)
        if prefix not in self._listed:
            self._listed[prefix] = {entry.key: entry.size for entry in self._catalog.store.list(prefix)}
        return self._listed[prefix].get(lineage.pack(kind, ref.session, number))

    def _is_foreign(self, ref: SessionRef) -> bool:
        return self._own is not None and ref.lineage != self._own

    def problem(self, ref: SessionRef, entry: PackEntry) -> str:
        """What is wrong with a pack ("is missing"); empty where nothing is."""
        size = self.size(ref, entry.kind, entry.number)
        if size is None:
            return "is missing"
        return "" if size == entry.size else f"has {size} bytes instead of {entry.size}"

    def lost(self, ref: SessionRef) -> dict[tuple[str, int], str]:
        """The packs of a session that are missing or cut, with what is wrong. Raises DamageError (its index)."""
        packs = self._catalog.root(ref).packs
        if self._is_foreign(ref):  # another history's map nodes are no concern of the own one
            packs = {name: entry for name, entry in packs.items() if entry.kind == DATA}
        problems = {name: self.problem(ref, entry) for name, entry in packs.items()}
        return {name: problem for name, problem in problems.items() if problem}


class Lost:
    """Packs of sessions, by their number in a table, that nothing may be built on. Read by any thread."""

    def __init__(
        self,
        catalog: Catalog,
        sessions: Iterable[SessionRef],
        condemned: Container[ObjectName] = (),
        damaged: Container[ObjectName] = (),
        own: bytes | None = None,
    ) -> None:
        """Compares each session's index with the store, with condemned lists (rule W6) and with what a scrub found.

        `own`: as of Stock.
        """
        self._packs: dict[tuple[int, str, int], VmbackupError] = {}
        self._sessions: dict[int, DamageError] = {}
        self._catalog, self._condemned, self._damaged = catalog, condemned, damaged
        self._stock = Stock(catalog, own)
        for ref in sessions:
            self.add(ref)

    def add(self, ref: SessionRef) -> None:
        """One more session."""
        catalog = self._catalog
        try:
            for (kind, number), problem in self._stock.lost(ref).items():
                key = catalog.lineage(ref).pack(kind, ref.session, number)
                self._packs[ref.number, kind, number] = DamageError(f"{key} {problem}", object_key=key)
            for kind, number in catalog.root(ref).packs:
                name = ObjectName(kind, ref.lineage, ref.session, number)
                if name in self._damaged:
                    key = name.key(catalog.keys.group)
                    error = DamageError(f"{key} is damaged, as 'vmbackup verify' found", object_key=key)
                    self._packs.setdefault((ref.number, kind, number), error)
                elif name in self._condemned:
                    why = RepositoryError(f"{name.key(catalog.keys.group)} is being collected")
                    self._packs.setdefault((ref.number, kind, number), why)
        except DamageError as error:
            self._sessions[ref.number] = error

    @property
    def sessions(self) -> set[int]:
        """The sessions that have such packs."""
        return {number for number, _, _ in self._packs} | self._sessions.keys()

    @property
    def told(self) -> list[str]:
        """What is missing or damaged, a sentence each."""
        errors = [*self._sessions.values(), *(e for e in self._packs.values() if isinstance(e, DamageError))]
        return sorted({error.message for error in errors})

    @property
    def damaged(self) -> set[str]:
        """The keys of packs that are missing or damaged."""
        return {error.object_key or "" for error in self._packs.values() if isinstance(error, DamageError)}

    def packs_of(self, session: int) -> set[tuple[str, int]]:
        """The (kind, number) of a session's packs with a problem."""
        return {(kind, pack) for number, kind, pack in self._packs if number == session}

    def __bool__(self) -> bool:
        return bool(self._packs or self._sessions)

    def problem(self, session: int, kind: str, number: int) -> VmbackupError | None:
        """Why not to use a pack; None where it is there, and whole by its size. A DamageError is told to people."""
        return self._sessions.get(session) or self._packs.get((session, kind, number))
