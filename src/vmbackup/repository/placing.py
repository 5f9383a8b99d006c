"""A run's view of the parent's map: what was moved is named by where it lies now."""

import threading
from collections.abc import Callable
from dataclasses import replace

from vmbackup.repository.catalog import Catalog
from vmbackup.repository.crypto import DATA, META
from vmbackup.repository.layout import SessionRef
from vmbackup.repository.moves import Place
from vmbackup.repository.nodes import ZERO, Node, Ref, Run
from vmbackup.repository.stock import Lost


class Placing:
    """Rule W5: a run that writes a part of a map anew writes the new places, so that moves die out.

    `table`: the run's sessions by number; those that slots were moved to are put in under numbers of `take_number`.
    """

    def __init__(
        self, catalog: Catalog, lost: Lost, table: dict[int, SessionRef], take_number: Callable[[], int]
    ) -> None:
        self.catalog, self._lost, self._table, self._take_number = catalog, lost, table, take_number
        self._lock = threading.Lock()
        self._numbers: dict[bytes, int] = {}

    def of(self, node: Node) -> Node:
        """The node with its entries led to where they lie now; `sessions` stays as it is stored."""
        if not any(self._is_moved(number) for number in node.sessions):
            return node
        runs: list[Run] = []
        refs: list[Ref] = []
        for entry in node.entries:
            if isinstance(entry, Ref):
                refs.append(self.of_ref(entry))
            elif self._is_moved(entry.session):
                places = self._places(DATA, entry.session, entry.pack, entry.slot, entry.chunks)
                runs += (Run(place.slots, place.ref.number, place.pack, place.slot) for place in places)
            else:
                runs.append(entry)
        return replace(node, entries=tuple(runs) if node.level == 0 else tuple(refs))

    def of_ref(self, ref: Ref) -> Ref:
        """A reference to a node, led to where the node lies now."""
        if ref.session == ZERO or not self._is_moved(ref.session):
            return ref
        (place,) = self._places(META, ref.session, ref.pack, ref.slot, 1)
        return ref._replace(session=place.ref.number, pack=place.pack, slot=place.slot)

    def _is_moved(self, number: int) -> bool:
        ref = self._table.get(number)
        return ref is not None and self.catalog.moves.concerns(ref.session)

    def _places(self, kind: str, number: int, pack: int, slot: int, slots: int) -> list[Place]:
        """Where slots lie now; those whose new place is not to be built on stay at their old one."""
        origin = self._table[number]
        found = []
        for place in self.catalog.places(origin, kind, pack, slot, slots):
            ref = self.numbered(place.ref) if place.tables else origin
            if self.is_fit(ref, kind, place.pack):
                found.append(place._replace(ref=ref))
            else:
                found.append(Place(origin, pack, slot, place.slots))
            slot += place.slots
        return found

    def numbered(self, ref: SessionRef) -> SessionRef:
        """A session under its number in the table, which it is put into. Any thread."""
        with self._lock:
            if not self._numbers:
                self._numbers = {known.session: number for number, known in self._table.items()}
            number = self._numbers.get(ref.session)
            if number is None:
                number = self._numbers[ref.session] = self._take_number()
                self._table[number] = ref._replace(number=number)
                self._lost.add(self._table[number])
            return self._table[number]

    def is_fit(self, ref: SessionRef, kind: str, pack: int) -> bool:
        """Whether a pack of a numbered session may be built on."""
        return self._lost.problem(ref.number, kind, pack) is None
