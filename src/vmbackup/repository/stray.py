"""Sessions that no commit vouches for any more: what their index tells that they hold.

A lost table of moves leaves its packs behind, with slots that restore points need and nothing else leads to. Their
indexes are sealed with the group's key, which is enough to look for ids; what is found is compared before it is used.
"""

import contextlib
from collections.abc import Container, Iterable, Iterator, Mapping

from vmbackup.errors import DamageError
from vmbackup.repository import frames
from vmbackup.repository.catalog import Catalog, fetch
from vmbackup.repository.condemned import INDEX, ObjectName
from vmbackup.repository.crypto import DATA, META, digest
from vmbackup.repository.index import MAX_ROOT
from vmbackup.repository.layout import Lineage, SessionRef
from vmbackup.repository.needs import Needs
from vmbackup.storage_backends import ObjectMissing


def ref_of(catalog: Catalog, lineage: Lineage, session: bytes) -> SessionRef | None:
    """A session by the index root that is there; None where none can be read."""
    found = {int(e.key.rpartition("-")[2]): e for e in catalog.store.list(lineage.prefix("index", session))}
    for number, entry in sorted(found.items(), reverse=True):
        with contextlib.suppress(DamageError):
            if entry.size > MAX_ROOT or fetch(catalog.store, entry.key, 0, frames.PREAMBLE.size)[8:12] != b"IDXR":
                continue
            made = digest(fetch(catalog.store, entry.key))
            for first in range(number, -1, -1):  # a repair may have put it back under a higher number
                ref = SessionRef(0, session, lineage.id, first, made)
                with contextlib.suppress(DamageError):
                    catalog.root(ref)
                    return ref
    return None


def stray(catalog: Catalog, known: Container[bytes]) -> Iterator[SessionRef]:
    """The sessions of the group that have an index and are not `known`, the newest first."""
    group = catalog.keys.group
    places = {tuple(entry.key.rpartition("-")[0].split("/")[2:]) for entry in catalog.store.list(f"index/{group}/")}
    for lineage, name in sorted(places, key=lambda place: place[1], reverse=True):
        session = bytes.fromhex(name)
        if session not in known and (ref := ref_of(catalog, Lineage(group, bytes.fromhex(lineage)), session)):
            yield ref


def is_table(catalog: Catalog, lineage: Lineage, session: bytes) -> bool:
    """Whether a commit that cannot be read was a table of moves: all that its session stored was born in others."""
    ref = ref_of(catalog, lineage, session)
    try:
        packs = catalog.root(ref).packs if ref else {}
        return bool(packs) and all(
            header.birth_of(slot).session != session
            for header in (catalog.header(ref, kind, number) for kind, number in packs if ref)
            for slot in header.slots()
        )
    except DamageError:
        return False


def healers(
    catalog: Catalog, needs: Needs, listed: Mapping[ObjectName, int], candidates: Iterable[ObjectName]
) -> set[ObjectName]:
    """Of `candidates` those that hold what needed packs held which are gone, and the indexes that tell of it."""
    lost = {
        (name.kind, chunk_id)
        for name, mask in needs.used()
        if name not in listed and not _exists(catalog, name)
        for chunk_id in _ids(catalog, needs.sessions.get(name.session), name, mask)
    }
    if not lost:
        return set()
    refs: dict[bytes, SessionRef | None] = {}
    kept: set[ObjectName] = set()
    for name in candidates:
        if name.kind in (DATA, META):
            if name.session not in refs:
                refs[name.session] = ref_of(catalog, Lineage(catalog.keys.group, name.lineage), name.session)
            ids = _ids(catalog, refs[name.session], name, -1)
            if any((name.kind, chunk_id) in lost for chunk_id in ids):
                kept.add(name)
    sessions = {name.session for name in kept}
    return kept | {name for name in listed if name.kind == INDEX and name.session in sessions}


def _exists(catalog: Catalog, name: ObjectName) -> bool:
    """Whether a pack that was not listed is there: it may have come since."""
    try:
        catalog.store.stat(name.key(catalog.keys.group))
    except ObjectMissing:
        return False
    return True


def _ids(catalog: Catalog, ref: SessionRef | None, name: ObjectName, mask: int) -> list[bytes]:
    """The ids of those slots of a pack that `mask` has a bit for; none where nobody tells them."""
    if ref is not None:
        with contextlib.suppress(DamageError):
            ids = catalog.header(ref, name.kind, name.number).ids()
            return [chunk_id for slot, chunk_id in enumerate(ids) if mask >> slot & 1]
    return []
