"""Finding chunks again: in the run itself, in what killed runs left, in other histories of the group."""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Container, Iterator

from vmbackup.errors import VmbackupError
from vmbackup.repository.catalog import Catalog
from vmbackup.repository.crypto import DATA
from vmbackup.repository.hookcache import Hint, HookCache
from vmbackup.repository.hooks import HOOK
from vmbackup.repository.layout import SessionRef
from vmbackup.repository.others import History, Others, PackOf
from vmbackup.storage_backends import StoreError

Place = tuple[int, int, int]  # session number, pack, slot

# Two generations of ids of the run itself: 8 GiB of the disk at 64 KiB, 30 MB.
_WINDOW = 65536
# Ids of packs that hooks led to: some 100 packs, 4 GiB of the disk at 64 KiB, 16 MB.
_NEAR = 65536
# So many hooks that lead to nothing are no chance: the cache is old or lies, and is asked no more.
_VAIN = 32


class Window:
    """The newest ids of the run. Dictionary operations are atomic: no lock."""

    def __init__(self) -> None:
        self._new: dict[bytes, Place] = {}
        self._old: dict[bytes, Place] = {}

    def get(self, chunk_id: bytes) -> Place | None:
        """Where the run stored the chunk, if it did so lately."""
        return self._new.get(chunk_id) or self._old.get(chunk_id)

    def put(self, chunk_id: bytes, place: Place) -> None:
        """A chunk was stored."""
        self._new[chunk_id] = place
        if len(self._new) >= _WINDOW:
            self._old, self._new = self._new, {}


class SparseIndex:
    """Packs of other sessions: what killed runs left, and what hooks of the group's other histories lead to.

    A hook is one chunk id in 64, and each first one of a killed run's packs. One that hits loads its pack's ids, and
    its neighbours then hit too; once they do, the packs that follow in the order of their disk are loaded ahead.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._hooks: dict[bytes, tuple[int, int]] = {}
        self._sessions: dict[int, SessionRef] = {}
        self._near: dict[bytes, Place] = {}
        self._loaded: OrderedDict[object, list[bytes]] = OrderedDict()
        self._trails: dict[bytes, tuple[History, PackOf, int]] = {}
        self._lock = threading.Lock()
        self._cache: HookCache | None = None
        self._others: Others

    def add(self, ref: SessionRef, lost: Container[tuple[str, int]]) -> None:
        """All data packs of a session but those that are lost. Raises DamageError."""
        self._sessions[ref.number] = ref
        for kind, pack in self._catalog.root(ref).packs:
            if kind == DATA and (kind, pack) not in lost:
                header = self._catalog.header(ref, DATA, pack)
                for slot, chunk_id in enumerate(header.ids()):
                    if slot == 0 or chunk_id[0] < HOOK:
                        self._hooks[chunk_id] = (ref.number, pack)

    def join(self, cache: HookCache, others: Others) -> None:
        """Other histories of the group from here on."""
        if cache:
            self._cache, self._others = cache, others

    def get(self, chunk_id: bytes) -> Place | None:
        """Where a session stored the chunk, as far as the hooks lead. Raises DamageError: a killed run's index."""
        place = self._near.get(chunk_id)
        if chunk_id[0] < HOOK or chunk_id in self._hooks:
            if place is None:
                place = self._follow(chunk_id)
            elif chunk_id in self._trails:
                self._go_ahead(chunk_id)
        return place

    def _follow(self, chunk_id: bytes) -> Place | None:
        if hook := self._hooks.get(chunk_id):
            with self._lock:
                self._load_own(*hook)
        elif (cache := self._cache) is not None and (hints := cache.find(chunk_id)):
            with self._lock, self._tolerant():
                self._load_other(chunk_id, hints)
        return self._near.get(chunk_id)

    def _load_own(self, number: int, pack: int) -> None:
        if (number, pack) not in self._loaded:
            header = self._catalog.header(self._sessions[number], DATA, pack)
            self._keep((number, pack), [(chunk_id, (number, pack, slot)) for slot, chunk_id in enumerate(header.ids())])

    def _load_other(self, chunk_id: bytes, hints: list[Hint]) -> None:
        for lineage, session, pack in hints:
            history = self._others.history(lineage)
            name = PackOf(session, pack)
            if history is not None and name in history.packs and name not in self._loaded:
                self._load(history, name)
                self._others.vain += chunk_id not in self._near
            if chunk_id in self._near:
                return
        if self._others.vain > _VAIN:
            self._cache = None

    def _load(self, history: History, name: PackOf) -> None:
        found: list[tuple[bytes, Place]] = []
        for place, first, ids in self._others.chunks(history, name):
            for step, chunk_id in enumerate(ids):
                found.append((chunk_id, (place.ref.number, place.pack, place.slot + step)))
                if chunk_id[0] < HOOK:
                    self._trails[chunk_id] = history, name, first + step
        self._keep(name, found)

    def _go_ahead(self, chunk_id: bytes) -> None:
        with self._lock, self._tolerant():
            if trail := self._trails.pop(chunk_id, None):
                history, name, slot = trail
                for following in history.ahead(name, slot):
                    if following not in self._loaded:
                        self._load(history, following)

    @contextlib.contextmanager
    def _tolerant(self) -> Iterator[None]:
        """Another history that cannot be read is not used: 'vmbackup verify' tells of it."""
        try:
            yield
        except (VmbackupError, StoreError):
            self._others.vain += 1

    def _keep(self, name: object, found: list[tuple[bytes, Place]]) -> None:
        self._near.update(found)
        self._loaded[name] = [chunk_id for chunk_id, _ in found]
        while len(self._near) > _NEAR and len(self._loaded) > 1:
            for chunk_id in self._loaded.popitem(last=False)[1]:
                self._near.pop(chunk_id, None)
                self._trails.pop(chunk_id, None)
