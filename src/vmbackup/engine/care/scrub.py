"""Reading packs whole: every slot's checksum; map nodes, and where the key can read, every chunk decoded."""

import queue
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vmbackup.engine.pipeline.pipeline import default_workers
from vmbackup.errors import DamageError
from vmbackup.progress import Progress
from vmbackup.repository import packs
from vmbackup.repository.catalog import Catalog, fetch
from vmbackup.repository.chunks import ChunkReader, Secrets
from vmbackup.repository.crypto import DATA, META, digest
from vmbackup.repository.layout import SessionRef
from vmbackup.repository.packs import FOOTER, Header, Slot
from vmbackup.repository.usage import PackName


@dataclass
class PackReport:
    """What is wrong with a pack: all of it (`slots` is None), or some slots. `problem` is empty where nothing is."""

    problem: str = ""
    slots: set[int] | None = field(default_factory=set)


class Scrubber:
    """Checks packs. Not shared between threads.

    Without `secrets`, as with a writer's key, chunks are compared with the checksums of their stored bytes: flipped
    bits are found, but not what was wrong before it was encrypted.
    """

    def __init__(self, catalog: Catalog, secrets: Secrets | None) -> None:
        self._catalog = catalog
        self._reader = ChunkReader(catalog, secrets) if secrets else None

    def check(self, ref: SessionRef, name: PackName) -> PackReport:
        """Reads a pack to its last byte."""
        try:
            entry = self._catalog.entry(ref, name.kind, name.number)
            key = self._catalog.lineage(ref).pack(name.kind, name.session, name.number)
            data = memoryview(fetch(self._catalog.store, key))
            if len(data) != entry.size:
                return PackReport(f"has {len(data)} bytes instead of {entry.size}", None)
            length, slots = packs.read_footer(bytes(data[-FOOTER.size :]), key)
            sealed = bytes(data[-FOOTER.size - length : -FOOTER.size])
            tail_wrong = digest(sealed) != entry.digest or slots != entry.slots
            header = self._catalog.header(ref, name.kind, name.number)
        except DamageError as error:
            return PackReport(error.message, None)
        broken = {n for n in range(len(header)) if not self._whole(header, n, data)}
        if broken:
            return PackReport(f"{len(broken)} of {len(header)} slots are damaged", broken)
        if tail_wrong:
            return PackReport("its own header is damaged; the index has another copy", set())
        if bytes(data[:8]) != b"vmbackup":
            return PackReport("its first bytes are damaged", set())
        return PackReport()

    def _whole(self, header: Header, number: int, data: memoryview) -> bool:
        try:
            slot = header.slot(number)
        except DamageError:
            return False
        return self.is_whole(header, slot, data[slot.offset : slot.offset + slot.stored])

    def is_whole(self, header: Header, slot: Slot, stored: memoryview) -> bool:
        """Whether these are the stored bytes of a slot, as far as the key can tell."""
        try:
            if digest(stored)[:16] != slot.checksum:
                return False
            self._decode(header, slot, stored)
        except DamageError:
            return False
        return True

    def _decode(self, header: Header, slot: Slot, stored: memoryview) -> None:
        if f"/{DATA}/" in f"/{header.name}":
            if self._reader:
                self._reader.open(header, slot, stored)
            return
        keys = self._catalog.keys
        birth = header.birth_of(slot)
        key = packs.pack_key(META, keys, birth, b"", slot.birth_pack)
        opener = packs.SlotOpener(packs.aad_prefix(keys.realm, META), keys.chunk_id_key(birth.key_number))
        opener.open(slot, stored, AESGCM(key), header.name)


def scrub(
    catalog: Catalog,
    secrets: Secrets | None,
    sessions: Mapping[bytes, SessionRef],
    sizes: Mapping[PackName, int],
    progress: Progress,
) -> dict[PackName, PackReport]:
    """Reads the packs of `sizes` (bytes, for the progress) in several threads; gives those with a problem."""
    workers = default_workers()
    free: queue.SimpleQueue[Scrubber] = queue.SimpleQueue()
    for _ in range(workers):
        free.put(Scrubber(catalog, secrets))
    progress.start("reading packs", sum(sizes.values()))

    def check(name: PackName) -> tuple[PackName, PackReport]:
        scrubber = free.get()
        try:
            return name, scrubber.check(sessions[name.session], name)
        finally:
            free.put(scrubber)
            progress.advance("reading packs", sizes[name])

    try:
        with ThreadPoolExecutor(workers, thread_name_prefix="verify") as pool:
            return {name: report for name, report in pool.map(check, sizes) if report.problem}
    finally:
        progress.finish("reading packs")
