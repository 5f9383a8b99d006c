"""Fetching the hooks of the group's histories into this host's cache: what a run against others' chunks begins with."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from vmbackup.errors import DamageError
from vmbackup.repository import hooks
from vmbackup.repository.catalog import fetch
from vmbackup.repository.crypto import digest
from vmbackup.repository.hookcache import HookCache
from vmbackup.repository.index import open_root
from vmbackup.repository.layout import Lineage, SessionRef
from vmbackup.repository.points import MOVES, PARTIAL, Point
from vmbackup.storage_backends import StoreError

if TYPE_CHECKING:
    from vmbackup.repository.repository import Repository

# A host looks through the group so often, and before a guest's first backup.
EVERY_SECONDS = 3600.0
# A backup waits so long for hooks; what is missing then comes before the next one.
MOST_SECONDS = 60.0
# Requests at once: a request to a bucket takes some 30 ms.
_THREADS = 8
# Histories whose hooks are written to the file together.
_BATCH = 64


def gather(repository: "Repository", lineage: Lineage, *, now: float | None = None) -> None:
    """Brings the hooks of the lineage's group up to date, if that is due. Raises StoreError where it cannot list."""
    cache = HookCache(repository.cache, lineage.group)
    now = time.time() if now is None else now
    known = cache.newest()
    if not cache or (lineage.id in known and abs(now - cache.gathered()) < EVERY_SECONDS):
        return
    sessions: dict[bytes, list[bytes]] = defaultdict(list)
    for entry in repository.store.list(f"points/{lineage.group}/"):
        _, _, history, session = entry.key.split("/")
        sessions[bytes.fromhex(history)].append(bytes.fromhex(session))
    cache.drop(known.keys() - sessions.keys())
    changed = [(max(found), history) for history, found in sessions.items() if max(found) != known.get(history)]
    deadline = time.monotonic() + MOST_SECONDS
    if _fetch(repository, cache, lineage.group, [(h, sessions[h]) for _, h in sorted(changed, reverse=True)], deadline):
        cache.note_gathered(now)
    cache.merge()
    cache.sweep()


def _fetch(
    repository: "Repository",
    cache: HookCache,
    group: str,
    histories: list[tuple[bytes, list[bytes]]],
    deadline: float,
) -> bool:
    """Whether all was fetched in time."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="hooks") as pool:
        for start in range(0, len(histories), _BATCH):
            part = histories[start : start + _BATCH]
            found = pool.map(lambda item: _named(repository, Lineage(group, item[0]), item[1]), part)
            for (history, ids), refs in zip(part, list(found), strict=True):
                missing = cache.missing(refs)
                new = dict(pool.map(lambda ref: (ref.session, _hooks(repository, group, ref)), _those(refs, missing)))
                cache.put(history, max(ids), refs, new)
                if time.monotonic() > deadline:
                    return False
    return True


def _those(refs: dict[bytes, SessionRef], sessions: Iterable[bytes]) -> Iterator[SessionRef]:
    return (refs[session] for session in sessions)


def _named(repository: "Repository", lineage: Lineage, sessions: list[bytes]) -> dict[bytes, SessionRef]:
    """The sessions that the newest point of a history names, and its partials since."""
    refs: dict[bytes, SessionRef] = {}
    for session in sorted(sessions, reverse=True):
        try:
            point = repository.read_point(lineage, session)
        except (DamageError, StoreError):
            continue  # others tell of it; its chunks are not found
        if point is not None and point.kind != MOVES:
            refs |= {ref.session: ref for ref in _of(point)}
            if point.kind != PARTIAL:
                break
    return refs


def _of(point: Point) -> Iterable[SessionRef]:
    return (point.own_ref(0),) if point.kind == PARTIAL else point.table.values()


def _hooks(repository: "Repository", group: str, ref: SessionRef) -> dict[int, bytes]:
    """The hooks of a session; none where it has none, as of former versions, or where they cannot be read."""
    keys, lineage = repository.group(group), Lineage(group, ref.lineage)
    try:
        name = lineage.index(ref.session, ref.root)
        root = open_root(fetch(repository.store, name), ref.digest, keys, ref.session, ref.root, name)
        number = root.hooks_part()
        if number is None:
            return {}
        name = lineage.index(ref.session, number)
        data = fetch(repository.store, name)
        if digest(data) != root.parts[number][1]:
            raise DamageError(f"{name} is damaged: its digest differs", object_key=name)
        return hooks.decode(data, keys, ref.session, number, name)
    except (DamageError, StoreError):
        return {}
