"""The files of its host that a guest is started from: in each restore point, as they were, and looked after there."""

from __future__ import annotations

import contextlib
import os
import random
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.ram import RamDisk, RamGuest
from tests.unit.copy.pair import Pair, ReplicaPair
from tests.unit.engine.kit import RamKit
from vmbackup.engine.backup import host_file
from vmbackup.engine.backup.host_file import HostFileReader
from vmbackup.engine.care.forget import known_damaged
from vmbackup.engine.care.repair import RepairOptions, repair
from vmbackup.engine.point_disk import PointDisk
from vmbackup.engine.replica import point_copy
from vmbackup.errors import DamageError, PointInTimeLostError
from vmbackup.hypervisor.source import BootFile
from vmbackup.progress import Silent
from vmbackup.repository import Repository
from vmbackup.repository.cache import Cache
from vmbackup.repository.chunks import Secrets
from vmbackup.repository.collect import PruneOptions, prune
from vmbackup.repository.differences import DiskMap
from vmbackup.repository.maps import nodes
from vmbackup.repository.nodes import ZERO
from vmbackup.repository.points import Point
from vmbackup.repository.session import Session
from vmbackup.repository.tombstones import forget
from vmbackup.repository.usage import freed_bytes, load

KIB = 1 << 10


def noise(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


class Guest:
    """One that is started from two files: its disk has nothing that could keep a pack of theirs."""

    def __init__(self, root: Path) -> None:
        self.kit = RamKit(root, {"vda": 64 * KIB})
        self.kernel, self.initrd = root / "vmlinuz", root / "initrd"
        self.kernel.write_bytes(noise(1, 50 * KIB + 123))
        self.initrd.write_bytes(noise(2, 30 * KIB) + bytes(20 * KIB) + b"end")
        self.kit.guest.boot_files = [BootFile("kernel", str(self.kernel)), BootFile("initrd", str(self.initrd))]
        self.kept: dict[str, dict[str, bytes]] = {}

    def backup(self, **options: Any) -> Point:
        made = self.kit.backup(**options)
        point = self.point(made.id)
        self.kept[made.id] = {file.path: Path(file.path).read_bytes() for file in point.files}
        return point

    def point(self, point_id: str) -> Point:
        return next(point for point in self.kit.points() if point.id == point_id)

    def check(self) -> None:
        """Every point has its files as they were, its table counts right, and nothing is damaged."""
        self.kit.check_all()
        for point in self.kit.points():
            assert contents(self.kit.repository, point) == self.kept[point.id]
            assert counted(self.kit.repository, point) == {n: uses for n, uses in point.uses.items() if uses}

    def drop(self, *points: Point) -> None:
        for point in points:
            forget(self.kit.repository, point.lineage, point.session)
            del self.kit.kept[point.id], self.kept[point.id]


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of the test were not changed lately."""
    monkeypatch.setattr(host_file, "_SETTLED", -1)


def contents(repository: Repository, point: Point) -> dict[str, bytes]:
    catalog, secrets = repository.new_catalog(point.lineage.group), Secrets(repository, point.lineage.group)
    found = {}
    for file in point.files:
        data = bytearray(file.size)
        PointDisk(DiskMap(catalog, point, file), None, secrets).open_reader().submit(0, memoryview(data))
        found[file.path] = bytes(data)
    return found


def counted(repository: Repository, point: Point) -> dict[int, int]:
    """How many nodes name each session of the table."""
    catalog = repository.new_catalog(point.lineage.group)
    found = Counter(record.root.session for record in point.maps if record.root.session != ZERO)
    walked = (nodes(record.root, partial(load, catalog, point, record)) for record in point.maps)
    for each in walked:
        for _, _, node in each:
            found.update(node.sessions)
    return dict(found)


def stored(guest: Guest) -> int:
    return sum(entry.size for folder in ("data/", "meta/") for entry in guest.kit.store.list(folder))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of what was read of host files."""
    found: list[int] = []
    submit = HostFileReader.submit

    def counting(self: HostFileReader, offset: int, buffer: memoryview) -> int:
        found.append(len(buffer))
        return submit(self, offset, buffer)

    monkeypatch.setattr(HostFileReader, "submit", counting)
    return found


def test_unchanged_ones_cost_nothing(guest: Guest, reads: list[int], settled: None) -> None:
    """Not a byte is stored again, and none read, by the same host, but for a full."""
    first = guest.backup()
    files = {file.path: file for file in first.files}
    assert [file.kind for file in first.files] == ["kernel", "initrd"]
    assert files[str(guest.kernel)].size == 50 * KIB + 123
    assert all(file.stored_bytes for file in first.files)
    size, _ = stored(guest), reads.clear()
    second = guest.backup()
    assert (stored(guest), reads) == (size, [])
    third = guest.backup(full=True)
    assert (stored(guest), sum(reads)) == (size, 50 * KIB + 123 + 50 * KIB + 3)
    for point in (second, third):
        assert [(file.root, file.stored_bytes) for file in point.files] == [(file.root, 0) for file in first.files]
    guest.check()


def test_one_that_was_changed_just_now_is_read_again(guest: Guest, reads: list[int]) -> None:
    """Its next change may have the same time."""
    assert [file.state for file in guest.backup().files] == [None, None]
    reads.clear()
    guest.backup()
    assert sum(reads) == 50 * KIB + 123 + 50 * KIB + 3
    guest.check()


def test_another_host_reads_for_itself(
    guest: Guest, reads: list[int], settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its device and inode of that number are others."""
    guest.backup()
    reads.clear()
    monkeypatch.setattr("vmbackup.engine.backup.run.host_identity", lambda: "another host")
    guest.backup()
    assert sum(reads) > 100 * KIB


@pytest.mark.parametrize("length", [0, 10 * KIB, 50 * KIB + 3, 90 * KIB])
def test_each_point_has_its_own(guest: Guest, length: int, settled: None) -> None:
    """An initrd that was made anew: shorter, as long, longer, empty, and back; only what changed is stored."""
    first = guest.backup()
    before = guest.initrd.read_bytes()
    guest.initrd.write_bytes((before[: 8 * KIB] + noise(3, 90 * KIB))[:length])
    second = guest.backup()
    assert second.files[0].root == first.files[0].root
    assert second.files[1].stored_bytes <= max(0, length - 8 * KIB) + 8 * KIB
    guest.initrd.write_bytes(before)
    guest.backup()
    guest.check()


def test_one_that_is_gone_and_comes_back(guest: Guest) -> None:
    guest.backup()
    data = guest.kernel.read_bytes()
    guest.kernel.unlink()
    point = guest.backup()
    assert [file.path for file in point.files] == [str(guest.initrd)]
    (warning,) = point.public["warnings"]
    assert warning.startswith(f"kernel {guest.kernel} is not in this restore point (No such file or directory): ")
    guest.kernel.write_bytes(data)
    again = guest.backup()
    assert (len(again.files), again.public["warnings"]) == (2, [])
    guest.check()
    guest.kit.guest.boot_files = []
    assert guest.backup().public["files"] is None
    guest.check()


def test_what_is_no_plain_file(guest: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not even opened: that does something to a pipe or a device."""
    pipe, folder, large = tmp_path / "pipe", tmp_path / "folder", tmp_path / "large"
    os.mkfifo(pipe)
    folder.mkdir()
    with large.open("wb") as file:
        file.truncate((1 << 30) + 1)
    guest.kit.guest.boot_files = [BootFile("acpi", str(path)) for path in (pipe, folder, large, tmp_path / "pipe/x")]
    opened, open_ = [], os.open

    def noting(path: Any, *given: Any, **named: Any) -> int:
        opened.append(str(path))
        return open_(path, *given, **named)

    monkeypatch.setattr(os, "open", noting)
    point = guest.backup()
    assert not {str(pipe), str(folder), str(large)} & set(opened)
    assert point.files == []
    why = ["no plain file", "no plain file", "more than 1 GiB", "Not a directory"]
    told = point.public["warnings"]
    assert [words in warning for words, warning in zip(why, told, strict=True)] == [True] * 4
    guest.check()


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("known", [False, True])
def test_one_that_is_written_to_meanwhile(
    guest: Guest, times: int, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read again, once; then it is left out: never is a half of it stored."""
    if known:
        guest.backup()
    left, submit = [times], HostFileReader.submit

    def meddling(self: HostFileReader, offset: int, buffer: memoryview) -> int:
        if left[0] and len(buffer) == 50 * KIB + 123:
            left[0] -= 1
            data = guest.kernel.read_bytes()
            found = guest.kernel.stat()
            with guest.kernel.open("r+b") as file:
                file.write(bytes(reversed(data)))
            os.utime(guest.kernel, ns=(found.st_atime_ns, found.st_mtime_ns + 1))
        return submit(self, offset, buffer)

    monkeypatch.setattr(HostFileReader, "submit", meddling)
    point = guest.backup()
    assert [file.path for file in point.files][: 3 - times] == [str(guest.kernel), str(guest.initrd)][times - 1 :]
    assert [("was written to meanwhile" in warning) for warning in point.public["warnings"]] == [True] * (times - 1)
    guest.check()
    assert len(guest.backup().files) == 2
    guest.check()


def test_one_that_cannot_be_read(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken disk below it costs the file, not the run."""
    guest.backup()
    preadv = os.preadv

    def broken(fd: int, buffers: list[memoryview], offset: int) -> int:
        if os.readlink(f"/proc/self/fd/{fd}") == str(guest.kernel):
            raise OSError(5, "Input/output error")
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", broken)
    point = guest.backup()
    assert [file.path for file in point.files] == [str(guest.initrd)]
    assert "(Input/output error)" in point.public["warnings"][0]
    guest.check()


def test_no_prune_takes_what_a_file_needs(guest: Guest, settled: None) -> None:
    """Whatever was forgotten: its chunks, its map, the index of its session, moved or where they were."""
    first = guest.backup()
    guest.initrd.write_bytes(noise(4, 60 * KIB))
    second = guest.backup()
    third = guest.backup()
    guest.drop(first, second)
    assert freed_bytes(guest.kit.repository.catalog(), third, [third]) > 100 * KIB
    report = prune(guest.kit.repository, PruneOptions(), sleep=lambda _s: None)
    assert report.bytes
    guest.kit.reopen()
    assert guest.kit.points()[0].session == third.session
    guest.check()


def test_slots_of_files_are_moved_by_a_repack(guest: Guest, settled: None) -> None:
    """Of a mostly dead pack the file's slots are in use."""
    guest.kit.disk().write(0, noise(9, 64 * KIB))
    guest.initrd.write_bytes(b"")
    guest.kernel.write_bytes(noise(8, 8 * KIB))
    first = guest.backup()
    guest.kit.disk().write(0, bytes(64 * KIB))
    guest.backup()
    guest.drop(first)
    report = prune(guest.kit.repository, PruneOptions(), sleep=lambda _s: None)
    assert report.repacked.packs
    guest.kit.reopen()
    guest.check()
    guest.backup()
    guest.check()


def test_guests_share_a_kernel(guest: Guest) -> None:
    """As they share what their disks hold; it outlives the one who stored it."""
    repository = guest.kit.repository
    repository.cache = Cache(guest.kit.root / "host.sqlite")
    guest.kernel.write_bytes(noise(7, 4 << 20))
    kept, first = guest.kernel.read_bytes(), guest.backup()
    other = RamGuest("other", {"vda": RamDisk(bytearray(64 * KIB))}, boot_files=[BootFile("kernel", str(guest.kernel))])
    guest.kit.host.add(other)
    made = guest.kit.backup_guest("other")
    (file,) = guest.point(made.id).files
    assert file.stored_bytes < 2 << 20  # up to the first hook all is stored again
    forget(repository, first.lineage, first.session)
    prune(repository, PruneOptions(), sleep=lambda _s: None)
    repository.cache.close()
    guest.kit.reopen()
    assert contents(guest.kit.repository, guest.point(made.id)) == {str(guest.kernel): kept}
    assert guest.kit.verify().damaged == ()


def harm(guest: Guest, folder: str) -> str:
    (path,) = [path for path in (guest.kit.root / "repository" / folder).rglob("*") if path.is_file()]
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    return str(path.relative_to(guest.kit.root / "repository"))


def test_damage_is_told_and_healed(guest: Guest, settled: None) -> None:
    """The host still has it: the next backup reads it again, though it is unchanged, and the older points are whole."""
    first = guest.backup(workers=1)
    key = harm(guest, "data")
    guest.kit.reopen()
    (damage,) = guest.kit.verify().damaged
    assert (damage.object, damage.points) == (key, (first.id,))
    assert set(damage.disks) <= {str(guest.kernel), str(guest.initrd)}
    assert known_damaged(guest.kit.repository, guest.kit.points()) == {first.session}
    second = guest.backup()
    assert any("of kernel" in text and "read again" in text for text in second.public["warnings"])
    guest.kit.reopen()
    guest.check()


def test_a_lost_map_is_told(guest: Guest, settled: None) -> None:
    """And the next run builds nothing on it."""
    first = guest.backup(workers=1)
    harm(guest, "meta")
    guest.kit.reopen()
    (damage,) = guest.kit.verify().damaged
    assert damage.points == (first.id,)
    second = guest.backup()
    guest.kit.reopen()
    assert contents(guest.kit.repository, guest.point(second.id)) == guest.kept[second.id]


@pytest.mark.parametrize("folder", ["data", "meta"])
def test_repaired_out_of_a_replica(guest: Guest, folder: str, settled: None) -> None:
    """Where a failed run has stored it first, the replica's map is another one."""

    def lost() -> None:
        raise PointInTimeLostError("lost")

    guest.kit.host.on_seal = lost
    with pytest.raises(PointInTimeLostError):
        guest.backup()
    guest.kit.host.on_seal = lambda: None
    guest.backup(workers=1)
    pair = ReplicaPair(guest.kit)
    pair.copy()
    for path in (guest.kit.root / "repository" / folder).rglob("*-*"):
        path.unlink()
    guest.kit.reopen()
    done = repair(guest.kit.repository, RepairOptions(replica=pair.there), Silent())
    assert done.first.damaged
    assert done.last.damaged == ()
    guest.kit.reopen()
    guest.check()


@pytest.mark.parametrize("kind", [Pair, ReplicaPair])
def test_copied(guest: Guest, kind: type[Pair], settled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With other keys, or slot by slot; what did not change is not looked at again, and a prune keeps it."""
    built_on: list[bool] = []

    class Noted(PointDisk):
        def __init__(self, new: DiskMap, old: DiskMap | None, secrets: Secrets | None) -> None:
            super().__init__(new, old, secrets)
            built_on.append(old is not None and new.disk.name == f"file {guest.kernel}")

    monkeypatch.setattr(point_copy, "PointDisk", Noted)
    guest.backup()
    pair = kind(guest.kit)
    guest.initrd.write_bytes(noise(5, 40 * KIB))
    guest.backup()
    for _ in range(2):
        assert not pair.copy().failed
        pair.check()
        for point in pair.found().points:
            assert contents(pair.there, point) == guest.kept[point.id]
            assert counted(pair.there, point) == {n: uses for n, uses in point.uses.items() if uses}
        guest.initrd.write_bytes(noise(6, 44 * KIB))
        guest.backup()
    kernels = [point.files[0] for point in pair.found().points]
    assert [file.stored_bytes > 0 for file in kernels] == [False, False, True]
    assert sum(built_on) == 2
    prune(pair.there, PruneOptions(), sleep=lambda _s: None)
    pair.copy()
    pair.check()


@pytest.mark.parametrize("kind", [Pair, ReplicaPair])
def test_copied_by_a_program_that_does_not_know_them(
    guest: Guest, kind: type[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the words over, as all that it does not know, with places of another repository: they say whose."""
    guest.backup()
    told = guest.kit.points()[0].public["files"]
    pair = kind(guest.kit)
    with monkeypatch.context() as old:
        old.setattr(Point, "files", [])
        maps = point_copy.PointCopy._maps

        def unknown(self: Any, *given: Any) -> dict[str, Any]:
            made = maps(self, *given)
            return {"disks": made["disks"], **({} if kind is ReplicaPair else {"files": told})}

        old.setattr(point_copy.PointCopy, "_maps", unknown)
        pair.copy()
    pair.reopen()
    (point,) = pair.found().points
    assert point.files == []
    pair.check()
    prune(pair.there, PruneOptions(), sleep=lambda _s: None)
    pair.check()


@pytest.mark.parametrize("kind", [None, ReplicaPair])
@pytest.mark.parametrize(
    "lie",
    [
        {"size": (1 << 30) + 1}, {"size": 1}, {"path": 7}, {"root": {}}, {"chunk_size": 3}, {"mode": -1},
        {"stored_bytes": "x"}, {"state": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_point_that_makes_no_sense(
    guest: Guest, kind: type[Pair] | None, lie: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it is signed, it is damaged, and stops nobody else; of a copy only the place counts."""
    first = guest.backup()
    pair = kind(guest.kit) if kind else None
    original = Session.commit

    def lying(self: Session, public: Any, *rest: Any) -> Point:
        saved = [{**file, **lie} for file in public["files"]["saved"]]
        return original(self, {**public, "files": {**public["files"], "saved": saved}}, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "commit", lying)
        with contextlib.suppress(DamageError):
            if pair:
                pair.copy()
            else:
                guest.kit.backup()
    guest.kit.reopen()
    assert guest.point(first.id).files
    found = (pair.there if pair else guest.kit.repository).read_points()
    counts = pair is None or not {"size", "chunk_size"} & lie.keys() or lie == {"size": (1 << 30) + 1}
    assert bool(found.damaged) is counts
    if pair and not counts:
        pair.check()
