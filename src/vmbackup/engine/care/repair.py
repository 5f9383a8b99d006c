"""Repair: what is damaged is recorded, and healed as far as it is whole anywhere. Nothing is ever deleted."""

from collections import defaultdict
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass

from vmbackup.engine.care.changes import changed
from vmbackup.engine.care.estate import check_place
from vmbackup.engine.care.findings import Damage
from vmbackup.engine.care.heal import HERE, NOWHERE, OWN, REMADE, REPLICA, STRAY, Healed, heal, sessions
from vmbackup.engine.care.verify import VerifySummary, verify
from vmbackup.errors import DamageError, RepositoryError
from vmbackup.progress import Progress
from vmbackup.repository import frames, keys, points, reindex, tombstones
from vmbackup.repository.catalog import Catalog, fetch
from vmbackup.repository.condemned import INDEX, ObjectName
from vmbackup.repository.crypto import DATA, META, digest
from vmbackup.repository.layout import Lineage, SessionRef
from vmbackup.repository.repository import PointList, Repository, point_place
from vmbackup.repository.usage import PackName
from vmbackup.storage_backends import ObjectExists

# A map node that is healed shows what lies below it, level by level.
_MOST_ROUNDS = 12


@dataclass(frozen=True)
class RepairOptions:
    """`read_data`: look at every byte first; `replica`: a repository of the same realm to heal from."""

    read_data: bool = False
    replica: Repository | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class Healing:
    """An object, and how what it held is whole again; `complete`: all of what restore points need of it."""

    object: str
    how: str
    complete: bool = True


@dataclass(frozen=True)
class RepairSummary:
    """`first`: what was found; `healed` (with dry_run: could be); `last`: what is found now."""

    first: VerifySummary
    healed: tuple[Healing, ...]
    last: VerifySummary


def repair(
    repository: Repository, options: RepairOptions, progress: Progress, *, suspects: Container[str] = ()
) -> RepairSummary:
    """Looks at all restore points, records what is damaged, heals what can be. Damage that remains is no error.

    Raises AccessError where moves of this key count for nothing, and what opening the store raises.
    """
    if not options.dry_run:
        for group in repository.groups():
            repository.check_may_collect(group)
    share = 1.0 if options.read_data else None
    before = repository.read_points()
    first = last = verify(repository, None, share, progress, suspects=suspects, record=not options.dry_run)
    healed: dict[str, Healing] = {}
    known = {damage.object for damage in first.damaged}
    for _ in range(_MOST_ROUNDS):
        if not last.damaged:
            break
        tables = {damage.object for damage in last.damaged if damage.is_table}
        looked = _Round(repository, options, progress)
        done = looked.run(last.damaged)
        healed.update(done)
        now = repository.read_points()
        if options.dry_run or not (done or changed(before, now)):
            if looked.error:
                raise looked.error
            break
        before = now
        # What lies below an index or a map was not seen before.
        deep = any(not key.startswith(f"{DATA}/") and key not in tables for key in done)
        last = verify(repository, None, share if deep else None, progress, suspects=known)
        known.update(damage.object for damage in last.damaged)
    return RepairSummary(first, tuple(healing for _, healing in sorted(healed.items())), last)


class _Round:
    """One pass over what is damaged. `error`: why what was found whole could not be committed."""

    def __init__(self, repository: Repository, options: RepairOptions, progress: Progress) -> None:
        self._repository, self._options, self._progress = repository, options, progress
        self._store, self._replica = repository.store, options.replica
        self._found: PointList = repository.survey()
        self.error: RepositoryError | None = None

    def run(self, damaged: tuple[Damage, ...]) -> dict[str, Healing]:
        """How each object that was healed was; those of which something was."""
        healed: dict[str, Healing] = {}
        packs: dict[str, set[PackName]] = defaultdict(set)
        for damage in damaged:
            folder, _, rest = damage.object.partition("/")
            if not rest:
                continue  # it names no object: a contradiction that nothing heals
            if folder in (DATA, META):
                name = ObjectName.parse(damage.object)
                packs[rest.partition("/")[0]].add(PackName(name.session, name.kind, name.number))
            elif damage.is_table:
                if how := self._table(damage.object, damaged):
                    healed[damage.object] = Healing(damage.object, how)
            elif how := self._index(damage.object) if folder == INDEX else self._document(damage.object):
                healed[damage.object] = Healing(damage.object, how)
        for group, names in packs.items():
            found = self._heal(group, names)
            healed |= {
                key: Healing(key, _told(key, counts), NOWHERE not in counts)
                for key, counts in found.items()
                if counts.keys() - {NOWHERE}
            }
        return healed

    def _heal(self, group: str, names: set[PackName]) -> Healed:
        """Nothing where the session was ended, or its table taken for needless, before that was seen to stand."""
        dry_run = self._options.dry_run
        try:
            return heal(
                self._repository, group, self._found, names, self._replica, self._progress, dry_run=dry_run
            )
        except RepositoryError as error:
            self.error = error
            return {}

    def _table(self, key: str, damaged: tuple[Damage, ...]) -> str:
        """A lost table of moves ends once nothing of its history is missing: another one tells what it told.

        Until then its session counts as one that may be needed, so that no collector takes its packs.
        """
        lineage, session = point_place(key)
        place = f"/{lineage.group}/{lineage.id.hex()}/"
        if any(place in other.object and not other.is_table for other in damaged):
            return ""
        if not self._options.dry_run:
            tombstones.forget(self._repository, lineage, session)
        return "all that was read through it is found without it"

    # Indexes

    def _index(self, key: str) -> str:
        name, group = ObjectName.parse(key), key.split("/")[1]
        ref = sessions(self._found, group).get(name.session)
        if ref is None:
            return ""
        catalog = self._repository.new_catalog(group)
        is_root = name.number == ref.root
        tries: list[tuple[str, Callable[[], bytes]]] = [
            ("made again out of its parts", lambda: self._root(catalog, ref))
            if is_root
            else ("made again out of its packs", lambda: reindex.part(catalog, ref, catalog.root(ref), name.number)),
            ("put back from the replica", lambda: self._same_index(catalog, ref, name.number, key)),
        ]
        for how, make in tries:
            try:
                data = make()
            except DamageError:
                continue
            if not self._options.dry_run:
                reindex.put_again(catalog, ref, name.number, data)
            return how
        return ""

    def _root(self, catalog: Catalog, ref: SessionRef) -> bytes:
        return reindex.root(catalog, ref, (*self._found.committed, *self._found.moves))

    def _same_index(self, catalog: Catalog, ref: SessionRef, number: int, key: str) -> bytes:
        """The replica's object of that name, if it is the one. Raises DamageError."""
        if self._replica is None:
            raise DamageError("there is no replica to look into", object_key=key)
        expected = ref.digest if number == ref.root else catalog.root(ref).parts[number][1]
        data = fetch(self._replica.store, key)
        if digest(data) != expected:
            raise DamageError(f"the replica's {key} is another one", object_key=key)
        return data

    # Documents

    def _document(self, key: str) -> str:
        """Only one that is missing can be put back: nothing is overwritten or deleted."""
        folder, _, rest = key.partition("/")
        others = {"config": f"config.copy/{rest}", "config.copy": f"config/{rest}"}
        if folder in others and (data := self._sound(self._repository, others[folder], key)):
            return self._put_back(key, data, "put back from its copy")
        if self._replica and (data := self._sound(self._replica, key, key) or self._original(self._replica, key)):
            return self._put_back(key, data, "put back from the replica")
        return ""

    def _original(self, replica: Repository, key: str) -> bytes:
        """The restore point `key` as a copy of it carries it; nothing where there is none."""
        found = replica.read_points() if key.startswith("points/") else None
        for copy in (*found.points, *found.twins) if found else ():
            if copy.original is not None and copy.original.key == key:
                return copy.verbatim
        return b""

    def _put_back(self, key: str, data: bytes, how: str) -> str:
        if self._repository.exists(key):
            return ""
        if not self._options.dry_run:
            try:
                self._store.put(key, data)
            except ObjectExists:
                return ""
        return how

    def _sound(self, origin: Repository, source: str, key: str) -> bytes:
        """The bytes of `source`, if they may stand under `key`; else none."""
        try:
            data = fetch(origin.store, source)
            self._check(key, data)
        except DamageError:
            return b""
        return data

    def _check(self, key: str, data: bytes) -> None:
        """Raises DamageError where these bytes may not stand under that key."""
        folder, _, rest = key.partition("/")
        repository = self._repository
        kinds = {"config": b"CONF", "config.copy": b"CONF", "groups": b"GRUP", "writers": b"WRTR"}
        if folder in kinds:
            document = frames.open_document(data, kinds[folder], key, repository.verify_key)
            check_place(document, key)
            if folder.startswith("config") and document["repository"] != repository.config.repository.hex():
                raise DamageError(f"{key} is of another repository", object_key=key)
        elif folder == "keys":
            keys.read_slot(data, key)
        elif folder == "points":
            group, lineage, session = rest.split("/")
            place = Lineage(group, bytes.fromhex(lineage))
            writers = repository.writers()
            points.decode(data, repository.group(group), place, bytes.fromhex(session), writers)
        else:
            raise DamageError(f"{key} cannot be put back", object_key=key)


def _told(key: str, counts: Mapping[str, int]) -> str:
    """How a pack's chunks or map nodes were healed."""
    words = {
        OWN: "taken out of it",
        STRAY: "found where a lost table of moves had led",
        HERE: "found elsewhere in the repository",
        REPLICA: "found in the replica",
        REMADE: "made again with the replica's help",
        NOWHERE: "found nowhere",
    }
    thing = "chunk" if key.startswith(f"{DATA}/") else "map node"
    found = ((counts[where], text) for where, text in words.items() if counts.get(where))
    return ", ".join(f"{number} {thing}{'s' * (number != 1)} {text}" for number, text in found)
