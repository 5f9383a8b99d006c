"""Repacking: the live slots of mostly dead packs go into new packs, so that the old ones can be collected.

Thinning frees almost no whole pack: what is kept lies scattered among what is not. Restore points are not touched;
a table of moves tells where their slots lie now (docs/repository-format.md, section 11).
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from vmbackup.errors import DamageError, RepositoryError
from vmbackup.progress import Progress, told
from vmbackup.repository.catalog import Catalog
from vmbackup.repository.condemned import ObjectName
from vmbackup.repository.layout import Lineage, SessionRef
from vmbackup.repository.moving import Mover
from vmbackup.repository.needs import Needs
from vmbackup.repository.repository import Repository

REPACK_BELOW = 0.8  # so at most a quarter more is stored than is needed, in the packs that may be repacked


@dataclass(frozen=True)
class Victim:
    """A pack that is worth it: `live` of its slots are in use, a bit each in `mask`; sizes in bytes, about."""

    name: ObjectName
    ref: SessionRef
    mask: int
    live_bytes: int
    dead_bytes: int


@dataclass
class RepackReport:
    """Packs that were, or would be, rewritten; bytes that are copied and bytes that come free, about."""

    packs: int = 0
    copied_bytes: int = 0
    freed_bytes: int = 0

    def add(self, packs: int, copied_bytes: int, freed_bytes: int) -> None:
        """More of them."""
        self.packs, self.copied_bytes = self.packs + packs, self.copied_bytes + copied_bytes
        self.freed_bytes += freed_bytes


def victims(needs: Needs, sizes: Mapping[ObjectName, int], catalog: Catalog, below: float) -> list[Victim]:
    """The packs of which less than `below` is in use, the emptiest first: they free the most for what they cost."""
    found = []
    for name, mask in needs.used():
        size = sizes.get(name)
        ref = needs.sessions.get(name.session)
        if size is None or ref is None:
            continue  # gone already, or of a run that goes on
        try:
            entry = catalog.entry(ref, name.kind, name.number)
        except DamageError:
            continue
        live = mask.bit_count()
        if entry.size == size and live < below * entry.slots:
            live_bytes = size * live // entry.slots
            found.append(Victim(name, ref, mask, live_bytes, size - live_bytes))
    return sorted(found, key=lambda victim: (victim.live_bytes / (victim.dead_bytes + 1), victim.name))


def affordable(found: list[Victim], room: int | None) -> list[Victim]:
    """The first of them whose copies fit into `room` bytes beside the old ones; all where there is no limit."""
    if room is None:
        return found
    chosen = []
    for victim in found:
        room -= victim.live_bytes
        if room < 0:
            break
        chosen.append(victim)
    return chosen


def repack(
    repository: Repository,
    group: str,
    found: list[Victim],
    read_needs: Callable[[], Needs],
    host: str,
    progress: Progress,
) -> RepackReport:
    """Copies what is in use of these packs, a table for each history. `read_needs` reads all points again.

    Raises what the store raises; nothing is lost by that.
    """
    report = RepackReport()
    histories: dict[bytes, list[Victim]] = defaultdict(list)
    for victim in found:
        histories[victim.name.lineage].append(victim)
    work: list[_History] = []
    try:
        for lineage, members in histories.items():
            work.append(_History(repository, Lineage(group, lineage), host, members))
        needs = read_needs()  # after the pins: rule W3
        with told(progress, "repacking", sum(victim.live_bytes for victim in found)) as advance:
            while work:
                try:
                    work[-1].run(needs, report, advance)
                except RepositoryError as error:  # it was taken for dead, and ended: the next call does it
                    progress.note(f"a history was not repacked: {error.message}")
                work.pop().close()
    finally:
        for history in work:
            history.close()
    return report


class _History:
    """The repacking of one guest's history."""

    def __init__(self, repository: Repository, lineage: Lineage, host: str, members: list[Victim]) -> None:
        self._members = {victim.name: victim for victim in members}
        self._mover = Mover.open(repository, lineage, host)
        self._committed = False

    def run(self, needs: Needs, report: RepackReport, advance: Callable[[int], None]) -> None:
        """Copies, and commits the table."""
        masks = {name: mask for name, mask in needs.used() if name in self._members}
        for name in sorted(masks):
            _copy(self._mover, self._members[name], masks[name], report)
            advance(self._members[name].live_bytes)
        _flatten(self._mover, needs)
        self._mover.commit()
        self._committed = True

    def close(self) -> None:
        """Ends what was not committed."""
        if not self._committed:
            self._mover.abandon()


def _copy(mover: Mover, victim: Victim, mask: int, report: RepackReport) -> None:
    if mover.is_full:
        return
    before = mover.copied_bytes
    try:
        broken = mover.copy(victim.ref, victim.name.kind, victim.name.number, _bits(mask))
    except DamageError:
        return  # it is gone, or damaged: it stays as it is
    report.add(1, mover.copied_bytes - before, 0 if broken else victim.dead_bytes)


def _flatten(mover: Mover, needs: Needs) -> None:
    """What older tables tell stands in this one too, as far as maps still need it: then they can go."""
    told: dict[tuple[str, bytes, int], int] = {}  # maps name the same slots in runs of several lengths
    for kind, ref, pack, slot, place in needs.moved:
        if ref.lineage == mover.lineage.id and not mover.is_full:
            key = kind, ref.session, pack
            known = told.setdefault(key, mover.copied(*key))
            for step in _bits(((1 << place.slots) - 1) & ~(known >> slot)):
                (now,) = mover.now(kind, place._replace(slot=place.slot + step, slots=1))
                mover.point_to(ref, kind, pack, slot + step, now)
            told[key] = known | ((1 << place.slots) - 1) << slot


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low
