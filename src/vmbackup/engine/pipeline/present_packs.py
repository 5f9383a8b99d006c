"""Whether the packs that some chunks of a map lie in are there, whole in length: asked before a disk is changed."""

from collections.abc import Iterable

from vmbackup.errors import DamageError
from vmbackup.repository.crypto import DATA
from vmbackup.repository.differences import DiskMap
from vmbackup.repository.maps import Extent
from vmbackup.repository.nodes import ZERO
from vmbackup.repository.usage import session_of

# Packs more than which of one session are looked for in its list; fewer are asked for one by one.
_FEW = 8


def check_present(disk_map: DiskMap, runs: Iterable[Extent]) -> None:
    """Raises DamageError naming the first pack that is missing or has another length than its index tells."""
    catalog = disk_map.catalog
    wanted: dict[str, dict[str, int]] = {}
    asked: set[tuple[int, int]] = set()
    for run in runs:
        if run.session == ZERO or ((run.session, run.pack) in asked and not catalog.moves):
            continue
        asked.add((run.session, run.pack))
        ref = session_of(disk_map.point, run.session)
        for place in catalog.places(ref, DATA, run.pack, run.slot, run.chunks):
            lineage = catalog.lineage(place.ref)
            name = lineage.pack(DATA, place.ref.session, place.pack)
            of_session = wanted.setdefault(lineage.prefix(DATA, place.ref.session), {})
            if name not in of_session:
                of_session[name] = catalog.entry(place.ref, DATA, place.pack).size
    for prefix, packs in wanted.items():
        _check(disk_map, prefix, packs)


def _check(disk_map: DiskMap, prefix: str, packs: dict[str, int]) -> None:
    store = disk_map.catalog.store
    if len(packs) > _FEW:
        found = {entry.key: entry.size for entry in store.list(prefix) if entry.key in packs}
    else:
        found = {entry.key: entry.size for name in packs for entry in store.list(name) if entry.key == name}
    for name, size in packs.items():
        if name not in found:
            raise DamageError(f"{name} is missing", object_key=name)
        if found[name] != size:
            raise DamageError(f"{name} has {found[name]} bytes instead of {size}", object_key=name)
