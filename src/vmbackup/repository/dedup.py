"""Finding chunks again: at the same place, in the run itself, in what killed runs left."""

import threading
from collections import OrderedDict
from collections.abc import Container

from vmbackup.repository.catalog import Catalog
from vmbackup.repository.crypto import DATA
from vmbackup.repository.layout import SessionRef

Place = tuple[int, int, int]  # session number, pack, slot

# Two generations of ids of the run itself: 8 GiB of the disk at 64 KiB, 30 MB.
_WINDOW = 65536
# One id in 64 is a hook; 16 packs are about 1 GiB of the disk, 5 MB.
_HOOK = 4  # first byte below this
_LOADED = 16


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
    """Hooks into sessions: one id in 64 and each pack's first lead to a pack, whose neighbours then hit too."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._hooks: dict[bytes, tuple[int, int]] = {}
        self._sessions: dict[int, SessionRef] = {}
        self._loaded: OrderedDict[tuple[int, int], dict[bytes, Place]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, ref: SessionRef, lost: Container[tuple[str, int]]) -> None:
        """All data packs of a session but those that are lost. Raises DamageError."""
        self._sessions[ref.number] = ref
        for kind, pack in self._catalog.root(ref).packs:
            if kind == DATA and (kind, pack) not in lost:
                header = self._catalog.header(ref, DATA, pack)
                for slot, chunk_id in enumerate(header.ids()):
                    if slot == 0 or chunk_id[0] < _HOOK:
                        self._hooks[chunk_id] = (ref.number, pack)

    def get(self, chunk_id: bytes) -> Place | None:
        """Where a session stored the chunk, as far as the hooks lead."""
        if not self._hooks:
            return None
        for ids in tuple(self._loaded.values()):
            if place := ids.get(chunk_id):
                return place
        hook = self._hooks.get(chunk_id)
        return self._load(*hook).get(chunk_id) if hook else None

    def _load(self, number: int, pack: int) -> dict[bytes, Place]:
        with self._lock:
            if (number, pack) not in self._loaded:
                header = self._catalog.header(self._sessions[number], DATA, pack)
                ids = {chunk_id: (number, pack, slot) for slot, chunk_id in enumerate(header.ids())}
                self._loaded[number, pack] = ids
                if len(self._loaded) > _LOADED:
                    self._loaded.popitem(last=False)
            return self._loaded[number, pack]
