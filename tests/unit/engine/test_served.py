"""A restore point read as a disk: at any place, by many at once, with damage where it is and nowhere else."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.unit.collection.steps import MemoryStore
from tests.unit.engine.kit import RamKit
from tests.unit.engine.test_repack import scattered
from vmbackup.engine.serve.served import ServedDisk, ServedPoint
from vmbackup.errors import AccessError
from vmbackup.nbd.errors import ReadFailed
from vmbackup.nbd.extents import Kind
from vmbackup.repository import Repository
from vmbackup.repository.chunks import ChunkReader
from vmbackup.repository.collect import PruneOptions, prune
from vmbackup.repository.layout import SessionRef
from vmbackup.repository.packs import PackBuilder
from vmbackup.repository.tombstones import forget
from vmbackup.repository.writers import WriterKeys

KIB = 1 << 10
CHUNK = 4 * KIB
SIZE = 3 * 1024 * KIB + 777  # windows of 1 MiB, and a last chunk that the disk does not fill


@pytest.fixture
def kit(tmp_path: Path) -> RamKit:
    """Five points of a disk that changes everywhere, with zeros in it, and of a second disk."""
    store: Any = MemoryStore()
    made, chance = RamKit(tmp_path, {"vda": SIZE, "vdb": 64 * KIB}, CHUNK, store), random.Random(7)
    made.disk().write(100 * KIB, chance.randbytes(1500 * KIB))
    made.disk().write(SIZE - 5000, chance.randbytes(5000))
    made.disk("vdb").write(0, b"the second disk")
    made.backup()
    for _ in range(4):
        for _ in range(30):
            made.disk().write(chance.randrange(SIZE - 9000), chance.randbytes(chance.choice([512, 4096, 9000])))
        made.disk().write(chance.randrange(SIZE - 99_000), bytes(90_000))
        made.backup()
    return made


@pytest.fixture
def served(kit: RamKit) -> Iterator[ServedPoint]:
    made = ServedPoint(kit.repository, kit.points()[0])
    yield made
    made.close()


def read(disk: ServedDisk, offset: int, length: int) -> bytes:
    return b"".join(bytes(piece) for piece in disk.read(offset, length))


def copied(disk: ServedDisk) -> bytes:
    """All of it, as a client copies it."""
    step = 256 * KIB
    return b"".join(read(disk, offset, min(step, SIZE - offset)) for offset in range(0, SIZE, step))


def test_any_part_of_every_point_is_what_it_was(kit: RamKit) -> None:
    chance = random.Random(3)
    for point in kit.points():
        served = ServedPoint(kit.repository, point)
        for target, data in kit.kept[point.id].items():
            disk = served.exports[target]
            assert disk.size == len(data)
            for _ in range(60):
                offset = chance.randrange(len(data))
                length = min(len(data) - offset, chance.choice([1, 511, 4096, 70_000, 1 << 20]))
                assert read(disk, offset, length) == data[offset : offset + length]
            assert read(disk, 0, len(data)) == data
        served.close()


def test_extents_tell_zeros_and_data_without_a_gap(kit: RamKit, served: ServedPoint) -> None:
    """What is said to be zero is; equal neighbours are one; a part is clipped."""
    data, disk = kit.kept[served.point.id]["vda"], served.exports["vda"]
    for start, length in ((0, SIZE), (4097, 1_000_000), (SIZE - 1, 1), (1_700_001, 3)):
        at, before = start, None
        for offset, size, kind in disk.extents(start, length):
            assert offset == at
            assert kind is not before
            if kind is Kind.ZERO:
                assert not any(data[offset : offset + size])
            at, before = at + size, kind
        assert at == start + length
    assert {kind for _, _, kind in disk.extents(0, SIZE)} == {Kind.ZERO, Kind.DATA}


def test_many_readers_get_right_bytes_and_each_chunk_is_fetched_once(kit: RamKit) -> None:
    """All of them read the same at the same time: the store is asked no more often than by one."""
    point = kit.points()[0]
    data = kit.kept[point.id]["vda"]
    alone = _requests(kit, point, 1, data)
    assert _requests(kit, point, 8, data) <= alone


def _requests(kit: RamKit, point: Any, readers: int, data: bytes) -> int:
    store = Counting(kit.store)
    repository = Repository(store, kit.repository.identity, kit.repository.config, kit.trust)  # type: ignore[arg-type]
    served = ServedPoint(repository, point)
    with ThreadPoolExecutor(readers) as pool:
        found = [pool.submit(read, served.exports["vda"], 0, SIZE) for _ in range(readers)]
    served.close()
    assert all(future.result() == data for future in found)
    return store.reads


def test_who_copies_a_disk_larger_than_the_cache_has_each_chunk_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By four connections in turns. What was read goes first: who reads on may not ask for it with the next part."""
    store: Any = MemoryStore()
    kit, part, step = RamKit(tmp_path, {"vda": 8 << 20}, 64 * KIB, store), 2 << 20, 256 * KIB
    data = random.Random(5).randbytes(8 << 20)
    kit.disk().write(0, data)
    kit.backup()
    decoded = 0
    plain_run = ChunkReader.run

    def run(reader: ChunkReader, ref: SessionRef, pack: int, slot: int, chunks: int, size: int) -> list[bytes] | None:
        nonlocal decoded
        decoded += chunks
        return plain_run(reader, ref, pack, slot, chunks, size)

    monkeypatch.setattr(ChunkReader, "run", run)
    monkeypatch.setattr(ServedDisk, "_make_ready", lambda *_: None)  # reading ahead is as fast as other threads are
    with closing(ServedPoint(kit.repository, kit.points()[0], cache_bytes=4 << 20)) as served:
        for at in range(0, part, step):
            for place in range(at, len(data), part):
                assert read(served.exports["vda"], place, step) == data[place : place + step]
    assert decoded == len(data) // (64 * KIB)


class Counting:
    """A store that counts what is read of packs."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.reads = 0
        self._lock = threading.Lock()

    def __getattr__(self, verb: str) -> Any:
        return getattr(self._store, verb)

    def read_into(self, *args: Any) -> None:
        with self._lock:
            self.reads += 1
        self._store.read_into(*args)


def test_memory_stays_within_the_limit(kit: RamKit) -> None:
    """A cache smaller than the disk forgets what was read first, and the bytes stay right."""
    point = kit.points()[0]
    served = ServedPoint(kit.repository, point, cache_bytes=40 * CHUNK)
    for _ in range(2):
        assert read(served.exports["vda"], 0, SIZE) == kit.kept[point.id]["vda"]
        assert served.cache.held <= 40 * CHUNK
    served.close()


def test_damage_fails_its_own_chunk_alone_and_is_told_once(kit: RamKit, caplog: pytest.LogCaptureFixture) -> None:
    """Each chunk of a damaged pack is right or an error; the log names point, disk and place."""
    point = kit.points()[0]
    data = kit.kept[point.id]["vda"]
    key = max((k for k in kit.store.objects if k.startswith("data/")), key=lambda k: len(kit.store.objects[k][0]))
    whole, modified = kit.store.objects[key]
    middle = len(whole) // 2
    kit.store.objects[key] = (whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :], modified)
    served = ServedPoint(kit.repository, point)
    wrong = []
    with caplog.at_level(logging.ERROR, "vmbackup.serve"):
        for _ in range(2):
            for offset in range(0, SIZE, CHUNK):
                length = min(CHUNK, SIZE - offset)
                try:
                    assert read(served.exports["vda"], offset, length) == data[offset : offset + length]
                except ReadFailed:
                    wrong.append(offset)
    assert len(wrong) == 2
    assert wrong[0] == wrong[1]
    place = f"restore point {point.id}, disk vda: {CHUNK} bytes at {wrong[0]}"
    (record,) = caplog.records
    assert record.getMessage() == f"{place} cannot be read: {key} is damaged: a chunk cannot be authenticated"
    kit.store.objects[key] = (whole, modified)
    assert read(served.exports["vda"], 0, SIZE) == data  # nothing that is wrong is remembered
    served.close()


def test_a_missing_pack_is_an_error_and_never_zeros(kit: RamKit) -> None:
    point = kit.points()[0]
    data = kit.kept[point.id]["vda"]
    for key in [k for k in kit.store.objects if k.startswith("data/")]:
        del kit.store.objects[key]
    served = ServedPoint(kit.repository, point)
    with pytest.raises(ReadFailed, match="is missing"):
        served.exports["vda"].read(0, SIZE)
    holes = next(e for e in served.exports["vda"].extents(0, SIZE) if e.kind is Kind.ZERO)
    assert read(served.exports["vda"], holes.offset, holes.length) == data[holes.offset : holes.offset + holes.length]
    served.close()


def test_a_prune_with_repacking_beside_it_changes_nothing(tmp_path: Path) -> None:
    """Chunks that move while they are served are found where they are now."""
    store: Any = MemoryStore()
    kit, chance = RamKit(tmp_path, {"vda": 48 * CHUNK}, store=store), random.Random(2)
    scattered(kit, chance, 48)
    kit.backup()
    for _ in range(7):
        scattered(kit, chance, 10)
        kit.backup()
    newest, *older = kit.points()
    served = ServedPoint(kit.repository, newest)
    before = {k for k in kit.store.objects if k.startswith("data/")}
    other = Repository(kit.store, kit.repository.identity, kit.repository.config, kit.trust)
    for point in older:
        forget(other, point.lineage, point.session)
    prune(other, PruneOptions(repack_below=100))
    assert before - set(kit.store.objects), "nothing was collected"
    assert read(served.exports["vda"], 0, 48 * CHUNK) == kit.kept[newest.id]["vda"]
    served.close()


def test_a_forgotten_and_pruned_point_ends_in_errors_not_in_bytes(kit: RamKit) -> None:
    newest, *older = kit.points()
    served = ServedPoint(kit.repository, newest)
    other = Repository(kit.store, kit.repository.identity, kit.repository.config, kit.trust)
    for point in (newest, *older):
        forget(other, point.lineage, point.session)
    prune(other, PruneOptions())
    with pytest.raises(ReadFailed):
        served.exports["vda"].read(0, SIZE)
    served.close()


def test_what_comes_next_is_made_ready(kit: RamKit) -> None:
    """Who reads on and on finds the next windows decoded."""
    store = Counting(kit.store)
    repository = Repository(store, kit.repository.identity, kit.repository.config, kit.trust)  # type: ignore[arg-type]
    served = ServedPoint(repository, kit.points()[0])
    disk = served.exports["vda"]
    for offset in range(0, 2 << 20, 64 * KIB):
        disk.read(offset, 64 * KIB)
    for _ in range(2):  # what waits is done, and what that has asked for
        barrier = threading.Barrier(9)
        for _ in range(8):
            served._pool.submit(barrier.wait, 30)
        barrier.wait(30)
    done = store.reads
    disk._make_ready = lambda steps: None  # type: ignore[method-assign]
    disk.read(2 << 20, 1 << 20)
    assert store.reads == done
    served.close()


def test_who_still_reads_when_it_is_closed_gets_right_bytes(kit: RamKit) -> None:
    point = kit.points()[0]
    served = ServedPoint(kit.repository, point)
    served.close()
    for offset in range(0, SIZE, 64 * KIB):
        wanted = kit.kept[point.id]["vda"][offset : offset + 64 * KIB]
        assert read(served.exports["vda"], offset, len(wanted)) == wanted


def test_a_key_that_reads_no_data_serves_nothing(kit: RamKit) -> None:
    key = WriterKeys(
        kit.repository.config.realm, kit.repository.verify_key, kit.repository.group(), kit.repository.writer
    )
    repository = Repository(kit.store, key, kit.repository.config, kit.trust)
    with pytest.raises(AccessError):
        ServedPoint(repository, kit.points()[0])


def test_what_an_encoder_got_wrong_is_never_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that were sealed under the id of others authenticate: their own id tells."""
    store: Any = MemoryStore()
    kit, chance = RamKit(tmp_path, {"vda": 32 * CHUNK}, CHUNK, store), random.Random(2)
    kit.disk().write(0, chance.randbytes(16 * CHUNK) + b"compresses well" * 4000)
    original = PackBuilder.add

    def add(self: PackBuilder, chunk_id: bytes, plain: memoryview | bytes) -> int:
        wrong = len(self) in (3, 20)
        return original(self, chunk_id, bytes([plain[0] ^ 1]) + bytes(plain[1:]) if wrong else plain)

    with monkeypatch.context() as patch:
        patch.setattr(PackBuilder, "add", add)
        patch.setattr(PackBuilder, "check", lambda *_: None)
        kit.backup()
    served = ServedPoint(kit.repository, kit.points()[0])
    wrong = {}
    for offset in range(0, 32 * CHUNK, CHUNK):
        try:
            assert read(served.exports["vda"], offset, CHUNK) == kit.disk().data[offset : offset + CHUNK]
        except ReadFailed as error:
            wrong[offset // CHUNK] = str(error)[-19:]
    assert wrong == dict.fromkeys((3, 20), "differs from its id")
    served.close()
