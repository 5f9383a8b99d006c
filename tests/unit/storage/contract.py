"""What every store must do. A backend's test class derives from StoreContract and says how it is opened.

Racing writers and killed ones are processes of their own: they open the store by its url and settings.
"""

import json
import mmap
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict

import pytest

from vmbackup.storage_backends import (
    BadKey,
    Buffer,
    ObjectExists,
    ObjectMissing,
    ObjectTruncated,
    S3Settings,
    Store,
    occupants,
    open_store,
)

SEED = 20240229
BAD_KEYS = ["", "/", "/a", "a/", "a//b", "..", "a/../b", ".", "./a", ".hidden", "a/.tmp-1"]
BAD_KEYS += ["A", "ä", "a b", "a\n", "a\0", "a" * 256, "a/" * 512 + "a"]

OPEN = """
import json, mmap, random, sys
from vmbackup.storage_backends import ObjectExists, S3Settings, open_store
settings = json.loads(sys.argv[2])
store = open_store(sys.argv[1], S3Settings(**settings) if settings else None)
"""

RACER = f"""{OPEN}
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[4])):
    try:
        store.put(f"race/{{number}}", sys.argv[3].encode() * 5000)
        print(number)
    except ObjectExists:
        pass
"""

WRITER = f"""{OPEN}
for number in range(int(sys.argv[3]), 1000000):
    data = mmap.mmap(-1, 8 << 20)
    data.write(random.Random(number).randbytes(8 << 20))
    print(number, flush=True)
    store.put(f"killed/{{number:09}}", data)
"""


def program(text: str, store: Store, settings: S3Settings | None, *args: object) -> list[str]:
    """The command that runs one of the programs above on the store."""
    told = json.dumps(settings and asdict(settings))
    return [sys.executable, "-c", text, store.url, told, *map(str, args)]


def aligned(data: bytes) -> mmap.mmap:
    """The bytes in memory that starts on a page, as the packer's buffers are."""
    buffer = mmap.mmap(-1, len(data))
    buffer.write(data)
    return buffer


class StoreContract:
    """Subclasses give the fixtures `store` (open, empty) and `overwrite` (key, bytes: past create-once).

    And `settings`, if it needs any beside its url. The numbers are smaller where each request crosses a network.
    """

    ROUNDS_OF_RACERS = 40
    KILLS = 12
    LISTS: int | None = None  # None: every prefix with every `after`

    @pytest.fixture
    def settings(self) -> S3Settings | None:
        return None

    @pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, (1 << 20) + 1, 3 << 20, (5 << 20) + 12345])
    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, aligned])
    def test_what_was_put_is_got(self, store: Store, size: int, kind: Callable[[bytes], Buffer]) -> None:
        """Every kind of buffer and every alignment of its length comes back as it was."""
        if not size and kind is aligned:
            pytest.skip("no memory map is empty")
        data = random.Random(SEED + size).randbytes(size)
        store.put("a/b", kind(data))
        assert store.get("a/b") == data
        assert store.stat("a/b").size == size

    def test_a_slice_of_a_buffer_is_put_and_let_go(self, store: Store) -> None:
        """The caller may close or resize its buffer after a put: no reference to it is kept."""
        buffer = aligned(random.Random(SEED).randbytes(4 << 20))
        view = memoryview(buffer)
        store.put("odd", view[1 : 1 + (2 << 20)])
        store.put("even", view[4096 : 4096 + (2 << 20) + 5])
        assert store.get("odd") == view[1 : 1 + (2 << 20)]
        assert store.get("even") == view[4096 : 4096 + (2 << 20) + 5]
        view.release()
        buffer.close()

    def test_the_same_bytes_again_are_a_success(self, store: Store) -> None:
        """A retry does not fail."""
        store.put("a", b"one")
        store.put("a", b"one")
        assert store.get("a") == b"one"

    @pytest.mark.parametrize("other", [b"", b"on", b"onE", b"one ", b"x" * (3 << 20)])
    def test_other_bytes_are_refused(self, store: Store, other: bytes) -> None:
        """An object is never changed."""
        store.put("a", b"one")
        with pytest.raises(ObjectExists) as caught:
            store.put("a", other)
        assert caught.value.key == "a"
        assert store.get("a") == b"one"
        assert [entry.key for entry in store.list("")] == ["a"]

    def test_of_racing_writers_one_wins(self, store: Store, settings: S3Settings | None) -> None:
        """Eight processes put other bytes under the same keys at once: each object is one's, whole."""
        names, rounds = "abcdefgh", self.ROUNDS_OF_RACERS
        racers = [
            subprocess.Popen(
                program(RACER, store, settings, name, rounds),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for name in names
        ]
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("go\n")
            racer.stdin.flush()
        wins = [racer.communicate(timeout=60)[0].split() for racer in racers]
        assert [racer.returncode for racer in racers] == [0] * len(names)
        winners = [
            [name for name, won in zip(names, wins, strict=True) if str(number) in won] for number in range(rounds)
        ]
        assert [len(won) for won in winners] == [1] * rounds
        for number, [winner] in enumerate(winners):
            assert store.get(f"race/{number}") == winner.encode() * 5000

    def test_ranges(self, store: Store) -> None:
        """get and read_into give exactly the bytes asked for."""
        data = random.Random(SEED).randbytes(10000)
        store.put("a", data)
        for offset, length in [(0, 0), (0, 1), (0, 10000), (9999, 1), (10000, 0), (4095, 4098)]:
            assert store.get("a", offset, length) == data[offset : offset + length]
            buffer = bytearray(length)
            store.read_into("a", offset, memoryview(buffer))
            assert buffer == data[offset : offset + length]
        assert store.get("a", 9990) == data[9990:]
        assert store.get("a", 10000) == b""

    @pytest.mark.parametrize(("offset", "length"), [(0, 101), (100, 1), (101, 0), (101, None), (1 << 62, 1 << 62)])
    def test_a_range_past_the_end_is_truncated(self, store: Store, offset: int, length: int | None) -> None:
        """Fewer bytes than asked for are never returned, and nothing is allocated for them."""
        store.put("a", bytes(100))
        with pytest.raises(ObjectTruncated) as caught:
            store.get("a", offset, length)
        assert (caught.value.key, caught.value.size) == ("a", 100)

    def test_an_object_cut_short_is_truncated(self, store: Store, overwrite: Callable[[str, bytes], None]) -> None:
        """A cut object raises, in both ways of reading it."""
        store.put("a", bytes(10000))
        overwrite("a", bytes(9999))
        with pytest.raises(ObjectTruncated):
            store.get("a", 5000, 5000)
        with pytest.raises(ObjectTruncated):
            store.read_into("a", 5000, memoryview(bytearray(5000)))
        with pytest.raises(ObjectExists):
            store.put("a", bytes(10000))

    def test_a_missing_object(self, store: Store) -> None:
        """Reading what does not exist names the key."""
        store.put("a/b", b"")
        for key in ["b", "a/c", "x/y/z", "a/b/c", "a"]:
            for read in (store.get, store.stat, lambda k: store.read_into(k, 0, memoryview(bytearray(1)))):
                with pytest.raises(ObjectMissing) as caught:
                    read(key)
                assert caught.value.key == key

    @pytest.mark.parametrize("key", BAD_KEYS)
    def test_a_bad_key_is_refused(self, store: Store, key: str) -> None:
        """No verb takes a key that leaves the place or that another store could not hold."""
        for use in (
            lambda: store.put(key, b""),
            lambda: store.get(key),
            lambda: store.read_into(key, 0, memoryview(bytearray(1))),
            lambda: store.stat(key),
            lambda: store.delete(key),
        ):
            with pytest.raises(BadKey):
                use()
        assert list(store.list("")) == []

    def test_lists(self, store: Store) -> None:
        """Any prefix and any `after` give the keys that a sorted list of bytes would."""
        chance = random.Random(SEED)
        names = ["a", "a-", "a.b", "a_", "a0", "b", "-"]
        keys = {"/".join([*chance.choices(names, k=chance.randint(1, 4)), "x"]) for _ in range(150)}
        for key in keys:
            store.put(key, key.encode())
        borders = " a a/ a/a a- a0/ b/x - zz / .. ../ a/../ a// A ~".split(" ")
        borders += chance.sample(sorted(keys), 10) + [key[:-1] for key in chance.sample(sorted(keys), 10)]
        pairs = [(prefix, after) for prefix in borders for after in borders]
        for prefix, after in pairs if self.LISTS is None else chance.sample(pairs, self.LISTS):
            listed = [entry.key for entry in store.list(prefix, after)]
            assert listed == sorted(key for key in keys if key.startswith(prefix) and key > after)
        assert all(entry.size == len(entry.key) for entry in store.list(""))

    def test_a_list_tells_size_and_time_as_stat_does(self, store: Store) -> None:
        """Times are seconds since 1970, close to now."""
        store.put("a/b", b"12345")
        [entry] = store.list("a")
        assert entry == store.stat("a/b")
        assert entry.size == 5
        assert abs(entry.modified - time.time()) < 60

    def test_a_list_is_streamed_while_objects_come_and_go(self, store: Store) -> None:
        """What stood before and after is listed, whatever happens to the rest."""
        for number in range(20):
            store.put(f"{number % 4}/{number:02}", b"")
        seen = []
        for entry in store.list(""):
            seen.append(entry.key)
            store.delete("3/19")
            store.delete("0/00")
            store.put(f"4/{len(seen):02}", b"")
        kept = {f"{number % 4}/{number:02}" for number in range(1, 19)}
        assert kept <= set(seen)
        assert len(seen) == len(set(seen))

    def test_delete_is_idempotent(self, store: Store) -> None:
        """A deleted object is gone, its key free, and a second delete is no error."""
        store.put("a/b", b"one")
        store.delete("a/b")
        store.delete("a/b")
        store.delete("never/was")
        store.delete("a")
        with pytest.raises(ObjectMissing):
            store.get("a/b")
        store.put("a/b", b"two")
        assert store.get("a/b") == b"two"

    def test_occupants(self, store: Store, overwrite: Callable[[str, bytes], None]) -> None:
        """A place is empty until it holds a file, be it one of ours or not."""
        assert list(occupants(store)) == []
        store.probe()
        assert list(occupants(store)) == []
        overwrite("Holiday Pictures/README.TXT", b"")
        overwrite(".hidden", b"")
        assert list(occupants(store)) == [".hidden", "Holiday Pictures/README.TXT"]

    def test_probe(self, store: Store) -> None:
        """A good store does all that a repository relies on, and keeps nothing of the probe."""
        found = store.probe()
        assert (found.put_if_absent, found.ranges, found.lists, found.deletes) == (True, True, True, True)
        assert abs(found.clock_skew) < 2
        assert list(store.list("")) == []

    def test_a_writer_killed_at_any_moment_leaves_whole_objects_only(
        self, store: Store, settings: S3Settings | None
    ) -> None:
        """kill -9 during puts of 8 MiB, several times: what is listed is whole, and a retry succeeds."""
        chance = random.Random(SEED)
        number = 0
        for _ in range(self.KILLS):
            writer = subprocess.Popen(program(WRITER, store, settings, number), stdout=subprocess.PIPE, text=True)
            assert writer.stdout is not None
            assert int(writer.stdout.readline()) == number
            time.sleep(chance.uniform(0, 0.15))
            writer.kill()
            started = [number, *map(int, writer.communicate()[0].split())]
            number = started[-1]
            there = [int(entry.key.removeprefix("killed/")) for entry in store.list("killed/")]
            assert there in (list(range(number)), list(range(number + 1)))
        for one in range(number + 1):
            store.put(f"killed/{one:09}", random.Random(one).randbytes(8 << 20))

    def test_it_is_opened_again_by_its_url(self, store: Store, settings: S3Settings | None) -> None:
        """The url is the whole address, beside the settings."""
        store.put("a", b"1")
        again = open_store(store.url, settings)
        assert again.get("a") == b"1"
        assert again.url == store.url
        again.close()
