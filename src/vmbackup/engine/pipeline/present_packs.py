"""Whether the packs that some chunks of a map lie in are there, whole in length: asked before a disk is changed."""

from collections.abc import Iterable

from vmbackup.errors import DamageError
from vmbackup.repository.catalog import Catalog
from vmbackup.repository.crypto import DATA
from vmbackup.repository.differences import DiskMap
from vmbackup.repository.layout import SessionRef
from vmbackup.repository.maps import Extent
from vmbackup.repository.nodes import ZERO
from vmbackup.repository.usage import session_of
from vmbackup.storage_backends import Store

# Packs more than which of one session are looked for in its list; fewer are asked for one by one.
_FEW = 8


class NeededPacks:
    """The packs that some chunks lie in, gathered; then looked for all together."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._sizes: dict[str, dict[str, int]] = {}  # by the prefix of their session: name -> bytes

    def add(self, ref: SessionRef, pack: int) -> None:
        """A pack where it lies now. Raises DamageError where the index tells of none."""
        lineage = self._catalog.lineage(ref)
        name = lineage.pack(DATA, ref.session, pack)
        of_session = self._sizes.setdefault(lineage.prefix(DATA, ref.session), {})
        if name not in of_session:
            of_session[name] = self._catalog.entry(ref, DATA, pack).size

    def check(self) -> None:
        """Raises DamageError naming the first that is missing or has another length than its index tells."""
        for prefix, packs in self._sizes.items():
            _check(self._catalog.store, prefix, packs)


def check_present(disk_map: DiskMap, runs: Iterable[Extent]) -> None:
    """Raises DamageError naming the first pack that is missing or has another length than its index tells."""
    catalog = disk_map.catalog
    needed = NeededPacks(catalog)
    asked: set[tuple[int, int]] = set()
    for run in runs:
        if run.session == ZERO or ((run.session, run.pack) in asked and not catalog.moves):
            continue
        asked.add((run.session, run.pack))
        ref = session_of(disk_map.point, run.session)
        for place in catalog.places(ref, DATA, run.pack, run.slot, run.chunks):
            needed.add(place.ref, place.pack)
    needed.check()


def _check(store: Store, prefix: str, packs: dict[str, int]) -> None:
    if len(packs) > _FEW:
        found = {entry.key: entry.size for entry in store.list(prefix) if entry.key in packs}
    else:
        found = {entry.key: entry.size for name in packs for entry in store.list(name) if entry.key == name}
    for name, size in packs.items():
        if name not in found:
            raise DamageError(f"{name} is missing", object_key=name)
        if found[name] != size:
            raise DamageError(f"{name} has {found[name]} bytes instead of {size}", object_key=name)
