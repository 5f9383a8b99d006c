"""Healing: slots in use of damaged packs are found elsewhere, copied, and found there through a table of moves."""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from vmbackup.engine.care.remap import Remap
from vmbackup.engine.care.scrub import Scrubber
from vmbackup.engine.care.wanted import Wanted, WantedSlot
from vmbackup.engine.identity import host_identity
from vmbackup.errors import AccessError, DamageError, VmbackupError
from vmbackup.progress import Progress
from vmbackup.repository import chunks, tombstones
from vmbackup.repository.catalog import Catalog, fetch
from vmbackup.repository.chunks import Secrets, spans
from vmbackup.repository.condemned import ObjectName
from vmbackup.repository.crypto import DATA
from vmbackup.repository.layout import Lineage, SessionRef
from vmbackup.repository.moves import Place
from vmbackup.repository.moving import Mover
from vmbackup.repository.packs import Birth, Header, Slot
from vmbackup.repository.repository import PointList, Repository
from vmbackup.repository.resolve import place_of
from vmbackup.repository.stray import stray
from vmbackup.repository.usage import PackName
from vmbackup.storage_backends import StoreError

_TASK = "looking for whole copies"
# Where a slot was found: in its own damaged pack, in a session that no commit vouches for (what a lost table of moves
# leaves behind), elsewhere in the repository, in the replica, made again, nowhere.
OWN, STRAY, HERE, REPLICA, REMADE, NOWHERE = "own", "stray", "here", "replica", "remade", "nowhere"

Healed = dict[str, Counter[str]]
"""Damaged packs (keys): numbers of their slots in use, by where they were found."""


class _Origin(NamedTuple):
    """A pack that may hold what is wanted, and in whose catalog it is known."""

    catalog: Catalog
    ref: SessionRef
    kind: str
    pack: int


def heal(
    repository: Repository,
    group: str,
    found: PointList,
    damaged: set[PackName],
    replica: Repository | None,
    progress: Progress,
    *,
    dry_run: bool = False,
) -> Healed:
    """Copies what the points of a group need of `damaged` packs out of them, as far as it is whole anywhere.

    `replica`: another repository of the realm, to look into last. Raises what a session of its own raises.
    """
    catalog = repository.new_catalog(group)
    catalog.use(point.move_table() for point in found.moves if point.lineage.group == group)
    wanted = Wanted(catalog, damaged)
    wanted.add(point for point in (*found.points, *found.twins) if point.lineage.group == group)
    histories: dict[bytes, list[WantedSlot]] = defaultdict(list)
    for slot in wanted.slots.values():
        histories[slot.ref.lineage].append(slot)
    healed: Healed = defaultdict(Counter)
    for lineage, slots in histories.items():
        history = _History(repository, catalog, Lineage(group, lineage), found, replica, healed)
        progress.start(_TASK, None)
        try:
            history.heal(slots, dry_run=dry_run)
        finally:
            progress.finish(_TASK)
    known = sessions(found, group)
    for name in wanted.unknown:
        if ref := known.get(name.session):
            healed[catalog.lineage(ref).pack(name.kind, name.session, name.number)][NOWHERE] += 1
    return dict(healed)


def heal_older(repository: Repository, lineage: Lineage, damaged: Iterable[str], progress: Progress) -> None:
    """After a backup that read again what lay in `damaged` packs (keys): older points get it too. Never fails."""
    try:
        repository.check_may_collect(lineage.group)
    except AccessError:
        progress.note(
            "older restore points may suffer from what was read again: run 'vmbackup repair' on a host whose key reads "
            "or prunes"
        )
        return
    names = {PackName(n.session, n.kind, n.number) for n in map(ObjectName.parse, filter(None, damaged))}
    try:
        healed = heal(repository, lineage.group, repository.read_points(lineage), names, None, progress)
    except (VmbackupError, StoreError) as error:
        progress.note(f"older restore points are not healed yet ({error.message}): run 'vmbackup repair'")
        return
    total = sum(healed.values(), Counter[str]())
    if whole := total.total() - total[NOWHERE]:
        lost = f"; {total[NOWHERE]} are lost, 'vmbackup repair' tells more" if total[NOWHERE] else ""
        progress.note(f"older restore points: {whole} chunks of damaged packs are whole again{lost}")
    elif total:
        progress.note("older restore points that suffer could not be healed: 'vmbackup repair' tells more")


def sessions(found: PointList, group: str) -> dict[bytes, SessionRef]:
    """All sessions of a group that its points, partials and tables of moves vouch for."""
    known: dict[bytes, SessionRef] = {}
    for point in (*found.committed, *found.moves):
        if point.lineage.group == group:
            for ref in (*point.table.values(), point.own_ref(0)):
                known.setdefault(ref.session, ref)
    return known


class _History:
    """The healing of what one guest's history holds: one session of moves."""

    def __init__(
        self,
        repository: Repository,
        catalog: Catalog,
        lineage: Lineage,
        found: PointList,
        replica: Repository | None,
        healed: Healed,
    ) -> None:
        self._repository, self._catalog, self._lineage = repository, catalog, lineage
        self._found, self._replica, self._healed = found, replica, healed
        self._secrets = Secrets(repository, lineage.group) if repository.can_read else None
        self._missing: dict[tuple[str, bytes], list[WantedSlot]] = defaultdict(list)
        self._mover: Mover | None = None
        self._staying: set[bytes] = set()  # sessions of lost commits that nobody has forgotten: no collector takes them

    def heal(self, slots: Iterable[WantedSlot], *, dry_run: bool) -> None:
        """Takes over what is whole anywhere, the nearest place first."""
        own: dict[tuple[str, bytes, int], _Origin] = {}
        for slot in slots:
            self._missing[slot.kind, slot.id].append(slot)
            own[slot.kind, slot.ref.session, slot.pack] = _Origin(self._catalog, slot.ref, slot.kind, slot.pack)
        self._mover = None if dry_run else Mover.open(self._repository, self._lineage, host_identity())
        try:
            self._search(OWN, own.values())
            self._search(STRAY, self._stray())
            self._search(HERE, self._everywhere(self._catalog, self._found))
            if self._replica is not None and self._missing:
                found = self._replica.read_points(group=self._lineage.group)
                away = self._replica.new_catalog(self._lineage.group)
                self._search(REPLICA, self._everywhere(away, found))
                self._remap(Remap(self._catalog, away, found))
            if self._mover:
                self._mover.commit()
        except BaseException:
            if self._mover:
                self._mover.abandon()
            raise
        for lost in self._missing.values():
            for slot in lost:
                self._count(slot, NOWHERE)

    def _everywhere(self, catalog: Catalog, found: PointList) -> Iterator[_Origin]:
        """All packs of the group: of the guest's own history first, the newest first."""
        known = sessions(found, self._lineage.group).values()
        for ref in sorted(known, key=lambda r: (r.lineage == self._lineage.id, r.session), reverse=True):
            if not self._missing:
                return
            with contextlib.suppress(DamageError):
                for kind, number in sorted(catalog.root(ref).packs):
                    yield _Origin(catalog, ref, kind, number)

    def _stray(self) -> Iterator[_Origin]:
        """Packs of sessions that no commit vouches for, or not any more."""
        if not self._missing:
            return
        group = self._lineage.group
        gone = {session for _, session in tombstones.trashed(self._repository, group)}
        gone |= tombstones.dead(self._repository, group)
        lost = {place[1] for place in map(place_of, self._found.damaged) if place is not None}
        self._staying = lost - gone  # read after the pin: what is forgotten later is waited for by collectors
        for ref in stray(self._catalog, sessions(self._found, group)):
            for kind, number in sorted(self._catalog.root(ref).packs):
                yield _Origin(self._catalog, ref, kind, number)

    def _search(self, where: str, origins: Iterable[_Origin]) -> None:
        """Takes over what is missing and whole there."""
        for origin in origins:
            if not self._missing:
                return
            try:
                header = origin.catalog.header(origin.ref, origin.kind, origin.pack)
                ids = enumerate(header.ids())
                matches = [chunks.Wanted(n, 1, n) for n, slot_id in ids if (origin.kind, slot_id) in self._missing]
                groups = list(spans(header, matches))
            except DamageError:
                continue
            for group in groups:
                self._take(where, origin, header, group)

    def _remap(self, remap: Remap) -> None:
        """Makes map nodes again that are nowhere."""
        for key, lost in list(self._missing.items()):
            node = next((slot.node for slot in lost if slot.node), None)
            made = remap.make(node) if node else None
            if made:
                for wanted in self._missing.pop(key):
                    self._use(wanted, REMADE, *made)

    def _take(self, where: str, origin: _Origin, header: Header, group: list[tuple[int, Slot]]) -> None:
        scrubber = Scrubber(origin.catalog, self._secrets)
        store, start = origin.catalog.store, group[0][1].offset
        data = b""
        with contextlib.suppress(DamageError):
            data = fetch(store, header.name, start, group[-1][1].offset + group[-1][1].stored - start)
        for number, slot in group:
            if self._mover and self._mover.is_full:
                return  # the next round goes on
            stored = memoryview(data)[slot.offset - start :][: slot.stored]
            with contextlib.suppress(DamageError):
                if not data:  # the pack is cut somewhere
                    stored = memoryview(fetch(store, header.name, slot.offset, slot.stored))
                if scrubber.is_whole(header, slot, stored) and (where != STRAY or self._is_same(origin, slot)):
                    stays = where == STRAY and origin.ref.session in self._staying
                    place = Place(origin.ref, origin.pack, number, 1) if stays else None
                    for wanted in self._missing.pop((origin.kind, slot.id), ()):
                        self._use(wanted, where, slot, header.birth_of(slot), stored, place)

    def _is_same(self, origin: _Origin, slot: Slot) -> bool:
        """Whether a slot that no commit vouches for is what is missing: a key that cannot decode it asks the old index.

        One that was encoded anew has another checksum, so that such a key leaves it to a reader.
        """
        if self._secrets or origin.kind != DATA:
            return True
        for wanted in self._missing.get((origin.kind, slot.id), ()):
            with contextlib.suppress(DamageError):
                if self._catalog.header(wanted.ref, DATA, wanted.pack).slot(wanted.slot).checksum == slot.checksum:
                    return True
        return False

    def _use(
        self,
        wanted: WantedSlot,
        where: str,
        slot: Slot,
        birth: Birth,
        stored: bytes | memoryview,
        place: Place | None = None,
    ) -> None:
        """What is whole lies in the mover's packs from now on, or stays at `place`: the packs of a lost table are kept.

        Its first slot is copied all the same: by packs of slots that were born elsewhere a lost table is known as one.
        """
        self._count(wanted, where)
        mover = self._mover
        if mover and not (
            place and mover.copied_bytes and mover.point_to(wanted.ref, wanted.kind, wanted.pack, wanted.slot, place)
        ):
            mover.take(wanted.ref, wanted.kind, wanted.pack, wanted.slot, slot, birth, stored)

    def _count(self, wanted: WantedSlot, where: str) -> None:
        key = self._lineage.pack(wanted.kind, wanted.ref.session, wanted.pack)
        self._healed.setdefault(key, Counter())[where] += 1

