"""Which chunks a target holds already: read there, and compared by their ids."""

from collections.abc import Callable, Iterator, Sequence

from blake3 import blake3

from vmbackup.errors import DamageError
from vmbackup.repository.catalog import Catalog
from vmbackup.repository.chunks import Wanted
from vmbackup.repository.crypto import DATA
from vmbackup.repository.layout import SessionRef
from vmbackup.repository.packs import Header

_READ_BYTES = 1 << 20

ReadInto = Callable[[int, memoryview], None]
"""Fills the buffer from an offset of the target."""


class PresentChunks:
    """Compares a disk in the making with what its map says. Shared by threads."""

    def __init__(self, catalog: Catalog, chunk_size: int, disk_size: int) -> None:
        self._catalog, self._size, self._end = catalog, chunk_size, disk_size

    def lacking(self, ref: SessionRef, pack: int, wanted: Sequence[Wanted], read_into: ReadInto) -> list[Wanted]:
        """Those of the wanted chunks of a pack that the target does not hold at their places."""
        try:
            header = self._catalog.header(ref, DATA, pack)
        except DamageError:
            return list(wanted)  # what is wrong is told where they are read
        found: list[Wanted] = []
        for part in wanted:
            for slot, first in self._different(header, part, read_into):
                last = found[-1] if found else None
                if last and (last.slot + last.chunks, last.first + last.chunks) == (slot, first):
                    found[-1] = last._replace(chunks=last.chunks + 1)
                else:
                    found.append(Wanted(slot, 1, first))
        return found

    def _different(self, header: Header, part: Wanted, read_into: ReadInto) -> Iterator[tuple[int, int]]:
        """(slot, place in the disk) of each chunk that differs."""
        size = self._size
        step = max(1, _READ_BYTES // size)
        for done in range(0, part.chunks, step):
            chunks, start = min(step, part.chunks - done), (part.first + done) * size
            buffer = bytearray(chunks * size)  # beyond the disk's end a chunk is filled with zeros
            view = memoryview(buffer)
            read_into(start, view[: min(len(buffer), self._end - start)])
            for number in range(chunks):
                plain = view[number * size : (number + 1) * size]
                if not self._holds(header, part.slot + done + number, plain):
                    yield part.slot + done + number, part.first + done + number

    def _holds(self, header: Header, number: int, plain: memoryview) -> bool:
        slot = header.slot(number)
        key = self._catalog.keys.chunk_id_key(header.birth_of(slot).key_number)
        return blake3(plain, key=key).digest() == slot.id
