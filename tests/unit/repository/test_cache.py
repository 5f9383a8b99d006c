"""The cache of a host: it saves reading, and whatever is wrong with it changes no answer."""

from __future__ import annotations

import random
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from tests.unit.engine.kit import RamKit
from vmbackup.repository import cache as cache_module
from vmbackup.repository import pointcache
from vmbackup.repository.cache import Cache
from vmbackup.repository.hookcache import HookCache
from vmbackup.repository.points import Verify
from vmbackup.storage_backends import Entry

POINTS = 4


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RamKit:
    """A repository with a few points, and a cache that knows them."""
    monkeypatch.setattr(cache_module, "_BUSY_SECONDS", 0.05)
    kit = RamKit(tmp_path, {"vda": 64 << 10})
    for number in range(POINTS):
        kit.disk().write(0, bytes([number + 1]) * 4096)
        kit.backup()
    kit.reopen()
    kit.repository.cache = Cache(tmp_path / "cache.sqlite")
    assert len(kit.points()) == POINTS
    return kit


def reads(kit: RamKit, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The points that are read from the store from here on."""
    found: list[str] = []
    get = kit.store.get

    def spy(key: str, *args: int) -> bytes:
        if key.startswith("points/"):
            found.append(key)
        return get(key, *args)

    monkeypatch.setattr(kit.store, "get", spy)
    return found


def reopened(kit: RamKit) -> Cache:
    kit.repository.cache.close()
    kit.reopen()
    kit.repository.cache = Cache(kit.root / "cache.sqlite")
    return kit.repository.cache


def test_points_are_read_once(kit: RamKit, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run or a command read is not read again, by any process; what is gone is not shown."""
    before = [point.id for point in kit.points()]
    reopened(kit)
    read = reads(kit, monkeypatch)
    assert [point.id for point in kit.points()] == before
    assert read == []
    kit.repository.read_points(live=True)
    assert len(read) == POINTS
    kit.store.delete(kit.points()[0].key)
    assert [point.id for point in kit.points()] == before[1:]
    assert len(kit.repository.cache.rows("SELECT key FROM points")) == POINTS - 1


def test_a_replaced_point_is_seen(kit: RamKit) -> None:
    """A point that is another object now is read, and told of."""
    victim = kit.points()[1]
    path = kit.root / "repository" / victim.key
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    found = kit.repository.read_points()
    assert [error.object_key for error in found.damaged] == [victim.key]


def test_a_body_that_lies_is_not_believed(kit: RamKit) -> None:
    """Another point's bytes in a row, or none of a point's, are put right from the store."""
    cache = kit.repository.cache
    (key, body), (_, other), *_ = cache.rows("SELECT key, body FROM points")
    for lie in (other, bytes(len(body)), "text", None):
        cache.change(("UPDATE points SET body = ?, size = ? WHERE key = ?", [(lie, len(body), key)]))
        assert not kit.repository.read_points().damaged
        assert len(kit.points()) == POINTS


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The signatures that are checked from here on."""
    found: list[bytes] = []

    def spy(public: Ed25519PublicKey, signature: bytes, message: bytes) -> None:
        found.append(signature)
        public.verify(signature, message)

    monkeypatch.setattr(pointcache, "verify_signature", spy)
    return found


def test_a_signature_is_checked_once(kit: RamKit, checked: list[bytes]) -> None:
    """A signature that held is known by the next process that reads with the same key."""
    reopened(kit)
    assert len(kit.points()) == POINTS
    assert checked == []
    kit.repository.read_points(live=True)
    assert len(checked) == POINTS


def test_a_proof_that_is_another_s_proves_nothing(kit: RamKit, checked: list[bytes]) -> None:
    """Proofs that this key did not make, or made of another commit, spare nothing; they are put right and kept few."""
    cache = kit.repository.cache
    (key, proof), (_, other), *_ = cache.rows("SELECT key, proofs FROM points")
    assert len(proof) == len(other) == 32
    for number, lie in enumerate((other, bytes(32), b"", b"short", other * 100), 1):
        cache.change(("UPDATE points SET proofs = ? WHERE key = ?", [(lie, key)]))
        assert len(kit.points()) == POINTS
        assert len(checked) == number
        (kept,) = cache.rows("SELECT proofs FROM points WHERE key = ?", [key])
        assert kept[0].startswith(proof)
        assert len(kept[0]) <= 8 * 32


def test_what_a_proof_is_of() -> None:
    """Who signed, the signature, every byte, and whose cache it is: with any other the signature is checked."""
    writer, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    public, message = writer.public_key(), b"a commit"
    signature = writer.sign(message)
    first = pointcache.Proofs(bytes(32), b"")
    first.verify(public, signature, message)
    assert first.grown
    again = pointcache.Proofs(bytes(32), first.to_bytes())
    again.verify(public, signature, message)
    assert not again.grown
    for wrong in ((other.public_key(), signature, message), (public, bytes(64), message), (public, signature, b"lie")):
        with pytest.raises(InvalidSignature):
            again.verify(*wrong)
    with pytest.raises(InvalidSignature):
        first.verify(public, bytes(64), message)
    elsewhere = pointcache.Proofs(bytes([1] * 32), first.to_bytes())
    elsewhere.verify(public, signature, message)
    assert elsewhere.grown


def test_another_key_has_proofs_of_its_own(tmp_path: Path) -> None:
    """Who can write the cache, but lacks the key, proves nothing by it."""
    writer = Ed25519PrivateKey.generate()
    body = b"a commit"
    signature = writer.sign(body)
    checked: list[bool] = []

    def decode(data: bytes, verify: Verify) -> bytes:
        proofs: Any = verify
        verify(writer.public_key(), signature, data)
        checked.append(proofs.__self__.grown)
        return data

    cache = Cache(tmp_path / "cache.sqlite")
    mine, theirs = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    entry = Entry("points/default/00/00", len(body), 1.0)
    for own in (mine, mine, theirs, theirs, mine):
        known = pointcache.PointCache(cache, own)
        assert known.get(entry, lambda _key: body, decode) == body
        known.close("points/", {entry.key})
    assert checked == [True, False, True, False, False]
    cache.close()


def test_a_forged_body_with_the_old_proof(kit: RamKit) -> None:
    """The proof of a commit is of all its bytes."""
    cache = kit.repository.cache
    key, body = cache.rows("SELECT key, body FROM points")[0]
    for at in (len(body) // 2, len(body) - 1):
        forged = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        cache.change(("UPDATE points SET body = ? WHERE key = ?", [(forged, key)]))
        before = {point.key: point.digest for point in kit.points()}
        assert before[key] == blake3(body).digest()


def test_flipped_bytes_change_nothing(kit: RamKit) -> None:
    """A file that is damaged anywhere is made anew, or is of use as far as it goes."""
    before = [(point.id, point.digest) for point in kit.points()]
    kit.repository.cache.close()
    path = kit.root / "cache.sqlite"
    whole = path.read_bytes()
    for seed in range(40):
        chance = random.Random(seed)
        data = bytearray(whole)
        for _ in range(chance.choice([1, 10, 1000])):
            data[chance.randrange(len(data) if seed % 2 else 4096)] ^= 1 << chance.randrange(8)
        path.write_bytes(data[: chance.randrange(len(data))] if seed % 5 == 0 else data)
        cache = reopened(kit)
        hooks = HookCache(cache, "default")
        hooks.find(bytes(32))
        hooks.put(bytes(16), bytes(16), [bytes(16)], {bytes(16): {1: bytes(8)}})
        hooks.merge()
        hooks.sweep()
        assert [(point.id, point.digest) for point in kit.points()] == before, seed
        cache.close()
        Path(f"{path}-wal").unlink(missing_ok=True)
        Path(f"{path}-shm").unlink(missing_ok=True)


def locked(path: Path) -> Callable[[], None]:
    other = sqlite3.connect(path)
    other.execute("BEGIN EXCLUSIVE")
    return other.close


def in_the_way(path: Path) -> Callable[[], None]:
    path.mkdir()
    return lambda: None


def nowhere(path: Path) -> Callable[[], None]:
    path.parent.rmdir()
    return lambda: None


@pytest.mark.parametrize("trouble", [locked, in_the_way, nowhere])
def test_a_file_that_cannot_be_used(kit: RamKit, tmp_path: Path, trouble: Callable[[Path], Callable[[], None]]) -> None:
    """Held by others, or not to be made: nothing is remembered, one sentence says so."""
    (tmp_path / "other").mkdir()
    path = tmp_path / "other" / "cache.sqlite"
    ended = trouble(path)
    kit.repository.cache = Cache(path)
    assert len(kit.points()) == POINTS
    assert not kit.repository.cache
    assert str(path) in kit.repository.cache.problem
    ended()


def test_a_full_disk(kit: RamKit, tmp_path: Path) -> None:
    """What cannot be written is not remembered; the answers are the same."""
    cache = kit.repository.cache = Cache(tmp_path / "full.sqlite")
    cache.rows("PRAGMA max_page_count = 24")
    hooks = {bytes([n]) * 16: {1: random.Random(n).randbytes(8000)} for n in range(9)}
    HookCache(cache, "default").put(bytes(16), bytes(16), hooks, hooks)
    assert "full" in cache.problem
    assert len(kit.points()) == POINTS


def test_another_schema_is_made_anew(kit: RamKit, tmp_path: Path) -> None:
    """A later version's file, or one with views and triggers, is not worked with."""
    path = tmp_path / "cache.sqlite"
    for change in (
        "PRAGMA user_version = 99",
        "CREATE TRIGGER t AFTER INSERT ON points BEGIN DELETE FROM points; END",
        "DROP TABLE hooks",
    ):
        kit.repository.cache.close()
        with sqlite3.connect(path) as other:
            other.execute(change)
        other.close()
        assert Cache(path).rows("SELECT * FROM points") == []
        reopened(kit)
        assert len(kit.points()) == POINTS
        assert len(kit.repository.cache.rows("SELECT * FROM points")) == POINTS


def test_a_broken_file_is_made_anew(kit: RamKit, tmp_path: Path) -> None:
    """What is no cache, or damaged beyond use, is put away by the next one who opens it."""
    path = tmp_path / "broken.sqlite"
    path.write_bytes(random.Random(1).randbytes(100_000))
    kit.repository.cache = Cache(path)
    assert kit.repository.cache, kit.repository.cache.problem
    assert len(kit.points()) == POINTS
    assert len(kit.repository.cache.rows("SELECT * FROM points")) == POINTS


def test_several_at_once(tmp_path: Path) -> None:
    """Many that write and read the same file, each with a connection of its own, as processes have."""
    problems: list[str] = []

    def work(number: int) -> None:
        cache = Cache(tmp_path / "cache.sqlite")
        hooks = HookCache(cache, "default")
        for turn in range(10):
            session = bytes([number, turn]) * 8
            hooks.put(bytes([number]) * 16, session, [session], {session: {7: bytes([turn]) * 8}})
            hooks.merge()
            hooks.find(bytes([turn]) * 32)
            hooks.merge()
        hooks.sweep()
        problems.append(cache.problem)
        cache.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == [""] * 6
    found = HookCache(Cache(tmp_path / "cache.sqlite"), "default").find(bytes([9]) * 32)
    assert {hint.lineage[0] for hint in found} == set(range(6))
