"""Repacking: what is still in use of mostly dead packs is copied, and everything restores as before."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.engine.kit import RamKit
from vmbackup.progress import Silent
from vmbackup.repository import collect as collect_module
from vmbackup.repository.collect import PruneOptions, PruneReport, prune
from vmbackup.repository.crypto import DATA, META
from vmbackup.repository.needs import Needs
from vmbackup.repository.points import Point
from vmbackup.repository.repository import Repository
from vmbackup.repository.tombstones import forget
from vmbackup.storage_backends import open_store

CHUNK = 4096


def collect(kit: RamKit, **options: Any) -> PruneReport:
    report = prune(kit.repository, PruneOptions(**options), sleep=lambda _s: None)
    kit.reopen()
    return report


def drop(kit: RamKit, points: list[Point]) -> None:
    for point in points:
        forget(kit.repository, point.lineage, point.session)
        del kit.kept[point.id]


def scattered(kit: RamKit, chance: random.Random, chunks: int) -> None:
    """As many chunks of the disk change, with data that does not compress."""
    disk = kit.disk()
    for chunk in chance.sample(range(len(disk.data) // CHUNK), chunks):
        disk.write(chunk * CHUNK, chance.randbytes(CHUNK))


def history(root: Path, points: int, keep: Callable[[int], bool], chunks: int = 512, share: float = 1 / 6) -> RamKit:
    """A history of scattered changes that was thinned."""
    kit, chance = RamKit(root, {"vda": chunks * CHUNK}), random.Random(7)
    scattered(kit, chance, chunks)
    kit.backup()
    for number in reversed(range(points - 1)):
        scattered(kit, chance, max(1, int(chunks * share)))
        made = kit.backup()
        kit.host.jobs.clear()
        if not keep(number):
            kit.kept[made.id] = {}  # to be forgotten: its bytes are not held
    drop(kit, [point for number, point in enumerate(kit.points()) if not keep(number)])
    return kit


def stored(kit: RamKit) -> int:
    return sum(entry.size for folder in (DATA, META) for entry in kit.store.list(f"{folder}/"))


def live(kit: RamKit) -> int:
    """Stored bytes of the slots that the points need, each once."""
    catalog = kit.repository.catalog()
    needs = Needs(catalog)
    for point in kit.points():
        needs.add(point)
    total = 0
    for name, mask in needs.used():
        header = catalog.header(needs.sessions[name.session], name.kind, name.number)
        total += sum(header.slot(n).stored for n in range(len(header)) if mask >> n & 1)
    return total


def test_a_thinned_history_costs_little_more_than_it_needs(tmp_path: Path) -> None:
    """Of 48 points 4 stay, scattered: without repacking they hold most packs; with it at most 1.25 of what is live."""
    kit = history(tmp_path, 48, lambda n: n % 12 == 0)
    collect(kit, repack_below=0.0)
    before = stored(kit)
    planned = collect(kit, dry_run=True).repacked
    assert stored(kit) == before
    report = collect(kit, host="here")
    assert report.repacked.packs == planned.packs > 0
    assert stored(kit) <= 1.25 * live(kit) < before
    kit.check_all()
    assert collect(kit, dry_run=True).repacked.packs == 0


def test_backups_go_on_from_moved_slots_and_moves_die_out(tmp_path: Path) -> None:
    """Rounds of changes, thinning and repacking: one table a history is enough, and in the end none is needed."""
    kit, chance = history(tmp_path, 12, lambda n: n % 3 == 0), random.Random(3)
    for _ in range(4):
        collect(kit, host="here")
        assert len(tables(kit)) == 1  # a later table stands for the former ones
        for _ in range(4):
            scattered(kit, chance, 24)
            assert all(disk.mode == "incremental" for disk in kit.backup().disks)
        drop(kit, kit.points()[2::2])
    kit.check_all()
    kit.disk().write(0, chance.randbytes(len(kit.disk().data)))
    kit.backup()
    drop(kit, kit.points()[1:])
    collect(kit, host="here")
    collect(kit, host="here")
    assert tables(kit) == []
    kit.check_all()


def tables(kit: RamKit) -> list[Point]:
    return kit.repository.read_points().moves


def test_old_packs_stay_while_their_copies_are_not_whole(tmp_path: Path) -> None:
    """A store that breaks what it is given: the collector looks before it lets the old packs go."""
    kit = history(tmp_path, 12, lambda n: n % 3 == 0)
    collect(kit, repack_below=0.0)
    old = {entry.key for entry in kit.store.list("data/")}

    class Breaking:
        """Turns a bit in the middle of each pack that is put."""

        def __getattr__(self, verb: str) -> Any:
            return getattr(kit.store, verb)

        def put(self, key: str, data: Any, **options: Any) -> None:
            body = bytearray(data)
            if key.startswith("data/"):
                body[len(body) // 3] ^= 1
            kit.store.put(key, body, **options)

    broken: Any = Breaking()
    notes: list[str] = []
    noting = Silent()
    noting.note = notes.append  # type: ignore[method-assign]
    repository = Repository.open(broken, *opened(kit))
    prune(repository, PruneOptions(host="here"), sleep=lambda _s: None, progress=noting)
    assert any("does not hold what was moved into it" in note for note in notes)
    assert old & {entry.key for entry in kit.store.list("data/")}
    kit.reopen()
    for point in kit.points():
        assert kit.restored(point) == kit.kept[point.id]  # by the old packs


def opened(kit: RamKit) -> Any:
    from tests.unit.engine.kit import SECRET

    return SECRET, kit.trust


def test_killed_at_any_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repacking that dies anywhere costs nothing, and the next one on this host ends what it left."""
    monkeypatch.setattr(collect_module, "is_alive", lambda _mark: False)

    class Dying:
        def __init__(self, left: int) -> None:
            self.left = left

        def __getattr__(self, verb: str) -> Any:
            found = getattr(store, verb)
            if verb in ("url", "place", "probe", "close"):
                return found

            def request(*args: Any, **options: Any) -> Any:
                self.left -= 1
                if self.left < 0:
                    raise KeyboardInterrupt
                return found(*args, **options)

            return request

    kit = history(tmp_path, 9, lambda n: n % 3 == 0, chunks=64)
    store = open_store(kit.store.url)
    for left in range(3, 1200, 17):
        dying: Any = Dying(left)
        try:
            prune(Repository.open(dying, *opened(kit)), PruneOptions(host="here"), sleep=lambda _s: None)
        except KeyboardInterrupt:
            pass
        else:
            break
        if left % 5 == 0:
            kit.reopen()
            for point in kit.points():
                assert kit.restored(point) == kit.kept[point.id]
    else:
        pytest.fail("it never came to its end")
    collect(kit, host="here", wait=0.0, dead_after=0.0)
    assert stored(kit) <= 1.25 * live(kit)
    assert not list(kit.store.list("sessions/"))
    kit.check_all()


def test_a_table_that_leads_astray_is_not_followed(tmp_path: Path) -> None:
    """Moves of slots to slots of other content, by a signer whose moves count: the ids differ, so they count not."""
    from vmbackup.repository.moves import Place
    from vmbackup.repository.moving import Mover

    kit = history(tmp_path, 6, lambda _n: True, chunks=64)
    point = kit.points()[0]
    own = point.own_ref(0)
    catalog = kit.repository.catalog()
    (pack,) = {number for kind, number in catalog.root(own).packs if kind == DATA}
    mover = Mover.open(kit.repository, point.lineage, "here")
    for other in kit.points()[1:]:
        ref = other.own_ref(0)
        for kind, number in catalog.root(ref).packs:
            if kind == DATA:
                for slot in range(len(catalog.header(ref, DATA, number))):
                    assert mover.point_to(ref, DATA, number, slot, Place(own, pack, 0, 1))
    assert mover.commit() is not None
    kit.reopen()
    assert len(tables(kit)) == 1
    kit.check_all()
    scattered(kit, random.Random(5), 8)
    kit.backup()
    collect(kit, host="here")
    kit.check_all()


@pytest.mark.torture
@pytest.mark.timeout(3600)
def test_1440_points_thinned_to_24_hourly_and_30_daily(tmp_path: Path) -> None:
    """Two months of hourly points, each with scattered changes: prune leaves at most 1.25 of the live bytes."""
    kit = history(tmp_path, 1440, lambda n: n < 24 or (n % 24 == 0 and n < 24 * 31), chunks=2048)
    collect(kit, repack_below=0.0)
    before = stored(kit)
    report = collect(kit, host="here")
    print(f"before {before}, after {stored(kit)}, live {live(kit)}, {report.repacked}")
    assert stored(kit) <= 1.25 * live(kit)
    for point in kit.points()[::9]:
        assert kit.restored(point) == kit.kept[point.id]
