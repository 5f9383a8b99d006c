"""Moving slots: a session that copies them as they are, and commits a table of where they lie now."""

from collections import Counter
from collections.abc import Iterable, Iterator

from vmbackup.errors import AccessError, DamageError
from vmbackup.repository import condemned, frames
from vmbackup.repository.catalog import Catalog, fetch
from vmbackup.repository.chunks import ChunkReader, Secrets, Wanted, spans
from vmbackup.repository.condemned import TABLE, ObjectName
from vmbackup.repository.crypto import DATA, META, digest
from vmbackup.repository.layout import Lineage, SessionRef
from vmbackup.repository.moves import MOST_MOVES, PIN_FIELD, Move, Place, encode
from vmbackup.repository.packs import PACK_BYTES, Birth, Header, PackBuilder, Slot
from vmbackup.repository.points import MOVES, Point, encode_table
from vmbackup.repository.processes import process_mark
from vmbackup.repository.repository import Repository
from vmbackup.repository.session import Session
from vmbackup.storage_backends import ObjectExists

_CAPACITY = {DATA: PACK_BYTES, META: 4 << 20}


class Mover:
    """A session of one history that moves slots of its packs. One thread.

    `open`, then read the points; `copy` and `point_to` in any order; then `commit` or `abandon`. Needs no private key.
    """

    def __init__(self, repository: Repository, lineage: Lineage, host: str) -> None:
        self._repository, self.lineage = repository, lineage
        self._catalog = repository.catalog(lineage.group)
        self._session = Session(repository, lineage, 1, host)
        self._own = SessionRef(1, self._session.id, lineage.id, 0, b"")
        self._numbers = {self._session.id: 1}
        self._refs: dict[int, SessionRef] = {}
        self._moves: list[Move] = []
        self._copied: dict[tuple[bytes, str, int], tuple[int, int]] = {}  # where a pack's moves stand
        self.copied_bytes = 0
        self._builders: dict[str, PackBuilder] = {}
        self._condemned: set[ObjectName] = set()

    @classmethod
    def open(cls, repository: Repository, lineage: Lineage, host: str) -> "Mover":
        """Rules W1 and W2: pins, then reads what is about to go."""
        repository.recheck()
        mover = cls(repository, lineage, host)
        mover._session.pin(**{PIN_FIELD: process_mark()})
        try:
            mover._condemned = set().union(*condemned.read(repository.store, lineage.group).values())
        except BaseException:
            mover.abandon()
            raise
        return mover

    @property
    def is_full(self) -> bool:
        """Whether the table holds as much as one may."""
        return len(self._moves) >= MOST_MOVES

    def copy(self, ref: SessionRef, kind: str, pack: int, slots: Iterable[int]) -> list[int]:
        """Copies slots of a pack of this history; gives those that are damaged and stay. Raises DamageError (all)."""
        name = self._catalog.lineage(ref).pack(kind, ref.session, pack)
        header = self._catalog.header(ref, kind, pack)
        broken, first = [], len(self._moves)
        for group in spans(header, [Wanted(slot, 1, slot) for slot in slots]):
            start, end = group[0][1].offset, group[-1][1].offset + group[-1][1].stored
            data = memoryview(fetch(self._catalog.store, name, start, end - start))
            for number, slot in group:
                stored = data[slot.offset - start : slot.offset - start + slot.stored]
                if digest(stored)[:16] != slot.checksum:
                    broken.append(number)
                    continue
                self.take(ref, kind, pack, number, slot, header.birth_of(slot), stored)
        self._copied[ref.session, kind, pack] = first, len(self._moves)
        return broken

    def take(
        self, ref: SessionRef, kind: str, pack: int, number: int, slot: Slot, birth: Birth, stored: bytes | memoryview
    ) -> None:
        """Slot `number` of a pack of this history lies here from now on: `stored`, compared with its checksum."""
        builder = self._builder(kind)
        if not builder.fits_stored(slot, birth):
            self._flush(builder)
            self._session.begin_pack(builder, kind)
        new = builder.add_stored(slot, birth, stored)
        self._add(Move(kind, self._number(ref), pack, number, 1, 1, builder.number, new))
        self.copied_bytes += slot.stored

    def copied(self, kind: str, session: bytes, pack: int) -> int:
        """A mask of the slots of a pack that were copied."""
        start, end = self._copied.get((session, kind, pack), (0, 0))
        return sum(((1 << move.slots) - 1) << move.slot for move in self._moves[start:end])

    def now(self, kind: str, place: Place) -> Iterator[Place]:
        """Where slots lie after what was copied so far."""
        start, end = self._copied.get((place.ref.session, kind, place.pack), (0, 0))
        at, stop = place.slot, place.slot + place.slots
        for move in self._moves[start:end]:
            if move.slot + move.slots <= at or move.slot >= stop:
                continue
            if move.slot > at:
                yield place._replace(slot=at, slots=move.slot - at)
                at = move.slot
            upto = min(move.slot + move.slots, stop)
            yield Place(self._own, move.new_pack, move.new_slot + at - move.slot, upto - at)
            at = upto
        if at < stop:
            yield place._replace(slot=at, slots=stop - at)

    def point_to(self, ref: SessionRef, kind: str, pack: int, slot: int, place: Place) -> bool:
        """Slots from `slot` on lie at `place`, which a valid point reaches. False where that is about to go."""
        gone = ObjectName(kind, place.ref.lineage, place.ref.session, place.pack) in self._condemned or any(
            ObjectName(TABLE, ref.lineage, table, 0) in self._condemned for table in place.tables
        )
        if not gone:
            old, new = self._number(ref), self._number(place.ref)
            self._add(Move(kind, old, pack, slot, place.slots, new, place.pack, place.slot))
        return not gone

    def _add(self, move: Move) -> None:
        last = self._moves[-1] if self._moves else None
        if (
            last is not None
            and (last.kind, last.session, last.pack) == (move.kind, move.session, move.pack)
            and (last.new_session, last.new_pack) == (move.new_session, move.new_pack)
            and last.slot + last.slots == move.slot
            and last.new_slot + last.slots == move.new_slot
        ):
            self._moves[-1] = last._replace(slots=last.slots + move.slots)
        else:
            self._moves.append(move)

    def _number(self, ref: SessionRef) -> int:
        number = self._numbers.setdefault(ref.session, len(self._numbers) + 1)
        self._refs.setdefault(number, ref._replace(number=number))
        return number

    def _builder(self, kind: str) -> PackBuilder:
        if kind not in self._builders:
            self._builders[kind] = PackBuilder(_CAPACITY[kind])
            self._session.begin_pack(self._builders[kind], kind)
        return self._builders[kind]

    def _flush(self, builder: PackBuilder) -> None:
        if len(builder):
            self._session.put_pack(builder)
            builder.clear()

    def commit(self) -> Point | None:
        """The table, durable; None where nothing was moved. Raises RepositoryError if the session was aborted."""
        if not self._moves:
            self.abandon()
            return None
        for builder in self._builders.values():
            self._flush(builder)
        self._refs[1] = self._session.close_index()
        uses = Counter(number for move in self._moves for number in (move.session, move.new_session))
        rows = encode_table(self._refs, uses) + encode(self._moves)
        point = self._session.commit({"features": []}, rows, [], MOVES)
        self._session.unpin()
        return point

    def abandon(self) -> None:
        """Ends the session with no table: what it stored is collected."""
        if self._session.stored_bytes:
            try:
                self._repository.store.put(self.lineage.point(self._session.id), frames.preamble(b"ABRT"))
            except ObjectExists:
                return  # it has ended, one way or the other
        self._session.give_up()


class Proof:
    """Before a collector lets an old pack go: whether its moved slots are whole where they lie now. One thread."""

    def __init__(self, repository: Repository, catalog: Catalog) -> None:
        self._catalog = catalog
        self._reader = ChunkReader(catalog, Secrets(repository, catalog.keys.group))
        self._proved: set[tuple[bytes, str, int, int, Place]] = set()

    def holds(self, ref: SessionRef, kind: str, pack: int, slot: int, place: Place) -> bool:
        """Reads moved slots and compares them with the checksums of the old index.

        What was encoded anew, out of the guest after damage, is decoded instead; by a key that cannot it is believed
        where the old slot is lost anyway.
        """
        key = ref.session, kind, pack, slot, place
        if key not in self._proved:
            try:
                if not self._compare(ref, kind, pack, slot, place):
                    return False
            except (DamageError, AccessError):
                return False
            self._proved.add(key)
        return True

    def _compare(self, ref: SessionRef, kind: str, pack: int, slot: int, place: Place) -> bool:
        old, new = self._catalog.header(ref, kind, pack), self._catalog.header(place.ref, kind, place.pack)
        name = self._catalog.lineage(place.ref).pack(kind, place.ref.session, place.pack)
        for group in spans(new, [Wanted(place.slot, place.slots, slot)]):
            start, end = group[0][1].offset, group[-1][1].offset + group[-1][1].stored
            data = memoryview(fetch(self._catalog.store, name, start, end - start))
            for number, found in group:
                stored = data[found.offset - start : found.offset - start + found.stored]
                was = old.slot(number)
                if was.id != found.id:
                    return False
                if digest(stored)[:16] != was.checksum:
                    if kind != DATA:
                        return False
                    try:
                        self._reader.open(new, found, stored)
                    except AccessError:
                        if digest(stored)[:16] != found.checksum or not self._is_lost(old, was):
                            return False
        return True

    def _is_lost(self, header: Header, slot: Slot) -> bool:
        """Whether the old pack does not hold the slot any more."""
        try:
            return digest(fetch(self._catalog.store, header.name, slot.offset, slot.stored))[:16] != slot.checksum
        except DamageError:
            return True
