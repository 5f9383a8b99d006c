"""Between the store and the server stands a proxy that misbehaves: each verb ends right, or fails in its time."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from tests.lab.fault_proxy import Fault, FaultProxy, Request
from tests.lab.rclone import KEYS, Rclone
from vmbackup.storage_backends import (
    ObjectExists,
    ObjectMissing,
    S3Settings,
    Store,
    StoreUnavailable,
    open_store,
)

pytestmark = pytest.mark.real

MIB = 1 << 20
PATIENCE = 1.5  # seconds
LIMIT = 15.0  # seconds within which a verb must have given up: its patience, and what is under way then
DATA = random.Random(1).randbytes(3 * MIB + 17)

BROKEN = {
    "busy": Fault(status=503, code="SlowDown"),
    "failing": Fault(status=500, code="InternalError"),
    "a bare 502": Fault(status=502),
    "cut before the body": Fault(send=0),
    "cut within the body": Fault(send=MIB),
    "answer lost": Fault(give=0),
    "slow": Fault(delay=0.5),
}


@pytest.fixture
def store(make_store: Callable[..., Store], settings: S3Settings, proxy: FaultProxy) -> Store:
    """Opened through the proxy; it knows already that the bucket keeps no versions."""
    made = make_store(replace(settings, endpoint=proxy.http, patience=PATIENCE))
    made.delete("none")
    proxy.seen.clear()
    return made


@pytest.fixture
def direct(make_store: Callable[..., Store]) -> Store:
    """The same place, with no proxy between."""
    return make_store()


@pytest.fixture
def quick() -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < LIMIT


class TestPut:
    """A put is there once and whole when it returns, whatever happened to its requests."""

    @pytest.mark.parametrize("fault", [*BROKEN, "swallowed", "flipped", "conflict"])
    def test_passing_faults(self, store: Store, direct: Store, proxy: FaultProxy, fault: str) -> None:
        chosen = BROKEN | {
            "swallowed": Fault(swallow=True),
            "flipped": Fault(flip=True),
            "conflict": Fault(status=409, code="ConditionalRequestConflict"),
        }
        proxy.first(3, chosen[fault], "PUT")
        store.put("a/b", DATA)
        assert direct.get("a/b") == DATA
        assert [entry.key for entry in direct.list("")] == ["a/b"]

    @pytest.mark.parametrize("fault", ["busy", "cut within the body", "swallowed", "answer of the look lost"])
    def test_lasting_faults_fail_in_time(
        self, store: Store, direct: Store, proxy: FaultProxy, fault: str, quick: None
    ) -> None:
        """What an earlier put stored stands, and a put of the same bytes succeeds later."""
        direct.put("before", b"1")
        always = {"swallowed": (Fault(swallow=True), "PUT"), "answer of the look lost": (Fault(give=0), "HEAD")}
        proxy.first(10**6, *always.get(fault, (BROKEN.get(fault), "PUT")))  # type: ignore[arg-type]
        with pytest.raises(StoreUnavailable) as caught:
            store.put("a/b", DATA)
        assert caught.value.hint
        proxy.faults = lambda _: None
        store.put("a/b", DATA)
        assert direct.get("a/b") == DATA
        assert direct.get("before") == b"1"

    def test_a_lost_answer_to_another_ones_object_is_no_success(
        self, store: Store, direct: Store, proxy: FaultProxy
    ) -> None:
        direct.put("a", b"theirs")
        proxy.first(1, Fault(give=0), "PUT")
        with pytest.raises(ObjectExists):
            store.put("a", b"ours")
        assert direct.get("a") == b"theirs"

    def test_sixteen_racers_have_one_winner(self, store: Store, direct: Store, proxy: FaultProxy) -> None:
        """Also where each second answer is lost: a winner that does not know it finds its own bytes."""
        for key, faults in (("calm", lambda _: None), ("stormy", _every_second(Fault(give=0)))):
            proxy.faults = faults
            bodies = [bytes([number]) * 100_000 for number in range(16)]
            won = _race(store, key, bodies)
            assert len(won) == 1
            assert direct.get(key) == bodies[won[0]]


class TestReading:
    """Reads give every byte asked for, or fail."""

    @pytest.mark.parametrize(
        "fault",
        [*BROKEN, "cut at the start", "cut in the middle", "cut before the end", "truncated", "empty", "dripping"],
    )
    def test_passing_faults(self, store: Store, direct: Store, proxy: FaultProxy, fault: str) -> None:
        chosen = BROKEN | {
            "cut at the start": Fault(give=1),
            "cut in the middle": Fault(give=MIB + 3),
            "cut before the end": Fault(give=2 * MIB - 1),
            "truncated": Fault(claim=MIB),
            "empty": Fault(claim=0),
            "dripping": Fault(drip=0.02),
        }
        direct.put("a/b", DATA)
        for read in (
            lambda: store.get("a/b"),
            lambda: store.get("a/b", 0, len(DATA)),
            lambda: _into(store, "a/b", 0, len(DATA)),
        ):
            proxy.first(2, chosen[fault], "GET")
            assert read() == DATA
        proxy.first(2, chosen[fault], "GET")
        assert _into(store, "a/b", 1000, 2 * MIB) == DATA[1000 : 1000 + 2 * MIB]

    def test_a_read_goes_on_where_it_was_cut(self, store: Store, direct: Store, proxy: FaultProxy) -> None:
        direct.put("a/b", DATA)
        proxy.first(1, Fault(give=2 * MIB), "GET")
        assert _into(store, "a/b", 0, len(DATA)) == DATA
        heads = [request.head.lower() for request in proxy.seen if request.method == "GET"]
        assert b"if-match" not in heads[0]
        assert b"if-match" in heads[1]
        assert f"range: bytes={2 * MIB}-{len(DATA) - 1}".encode() in heads[1]

    def test_parts_of_two_objects_are_never_joined(
        self, store: Store, direct: Store, proxy: FaultProxy, overwrite: Callable[[str, bytes], None]
    ) -> None:
        direct.put("a/b", DATA)
        proxy.faults = _cut_and_replace(proxy, lambda: overwrite("a/b", bytes(len(DATA))))
        with pytest.raises(StoreUnavailable, match="was replaced while it was read"):
            store.get("a/b")

    def test_nor_where_the_server_ignores_if_match(self, rclone: Rclone) -> None:
        with FaultProxy(rclone.http) as proxy:
            store = open_store(
                "s3://replaced/x", S3Settings(proxy.http, access_key=KEYS[0], secret_key=KEYS[1]), create=True
            )
            store.put("a/b", DATA)
            proxy.seen.clear()
            path = rclone.folder / "replaced/x/a/b"
            proxy.faults = _cut_and_replace(proxy, lambda: path.write_bytes(bytes(len(DATA))))
            with pytest.raises(StoreUnavailable, match="was replaced while it was read"):
                store.get("a/b")
            store.close()

    @pytest.mark.parametrize("fault", ["busy", "answer lost", "cut", "empty"])
    def test_lasting_faults_fail_in_time(
        self, store: Store, direct: Store, proxy: FaultProxy, fault: str, quick: None
    ) -> None:
        direct.put("a/b", DATA)
        chosen = BROKEN | {"cut": Fault(give=1000), "empty": Fault(claim=0)}
        proxy.first(10**6, chosen[fault])
        with pytest.raises(StoreUnavailable):
            store.get("a/b", 5, MIB)


class TestOtherVerbs:
    """stat, list, delete and the probe ride out what passes and give up on what lasts."""

    @pytest.mark.parametrize("fault", ["busy", "failing", "a bare 502", "answer lost", "cut before the body"])
    def test_passing_faults(self, store: Store, direct: Store, proxy: FaultProxy, fault: str) -> None:
        direct.put("a/b", DATA)
        proxy.first(2, BROKEN[fault])
        assert store.stat("a/b").size == len(DATA)
        proxy.first(2, BROKEN[fault])
        assert [entry.key for entry in store.list("a/")] == ["a/b"]
        proxy.first(2, BROKEN[fault])
        with pytest.raises(ObjectMissing):
            store.stat("a/c")
        proxy.first(2, BROKEN[fault])
        store.delete("a/b")
        assert list(direct.list("")) == []
        proxy.first(2, BROKEN[fault])
        assert store.probe().put_if_absent

    def test_lasting_faults_fail_in_time(self, store: Store, proxy: FaultProxy, quick: None) -> None:
        proxy.first(10**6, BROKEN["busy"])
        with pytest.raises(StoreUnavailable, match="slow down"):
            store.stat("a")
        proxy.first(10**6, BROKEN["answer lost"])
        with pytest.raises(StoreUnavailable, match="without an answer"):
            list(store.list(""))

    def test_a_list_cut_between_pages(
        self, store: Store, direct: Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each page is asked for by the last key of the one before, so each can be asked for again."""
        monkeypatch.setattr("vmbackup.storage_backends.s3._PAGE", 7)
        keys = [f"x/{number:02}" for number in range(40)]
        for key in keys:
            direct.put(key, b"")
        proxy.faults = _every_second(Fault(give=200))
        assert [entry.key for entry in store.list("x/")] == keys
        assert [entry.key for entry in store.list("", "x/29")] == keys[30:]
        proxy.faults = lambda _: None
        assert [entry.key for entry in store.list("x/0")] == keys[:10]


def test_requests_at_a_time_are_bounded(bucket: str, prefix: str, settings: S3Settings, proxy: FaultProxy) -> None:
    """A thread beyond `connections` waits; none opens a connection of its own."""
    now, most, lock = [0], [0], threading.Lock()

    def choose(_: Request) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.05)
        with lock:
            now[0] -= 1

    proxy.faults = choose
    store = open_store(f"s3://{bucket}/{prefix}", replace(settings, endpoint=proxy.http, connections=3))
    threads = [threading.Thread(target=store.put, args=(f"a/{number}", b"1")) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.close()
    assert 2 <= most[0] <= 3


def _every_second(fault: Fault) -> Callable[[Request], Fault | None]:
    count = itertools.count()
    return lambda _: None if next(count) % 2 else fault


def _cut_and_replace(proxy: FaultProxy, replace_object: Callable[[], object]) -> Callable[[Request], Fault | None]:
    """The first read is cut; before the second one the object is replaced."""

    def choose(request: Request) -> Fault | None:
        if request.method != "GET":
            return None
        if proxy.count("GET") == 1:
            return Fault(give=2 * MIB)
        replace_object()
        return None

    return choose


def _race(store: Store, key: str, bodies: list[bytes]) -> list[int]:
    won: list[int] = []
    barrier = threading.Barrier(len(bodies))

    def run(number: int) -> None:
        barrier.wait()
        try:
            store.put(key, bodies[number])
        except ObjectExists:
            return
        won.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won


def _into(store: Store, key: str, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    store.read_into(key, offset, memoryview(buffer))
    return bytes(buffer)
