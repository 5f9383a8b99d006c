"""A stolen backup host signs points under names of genuine ones: it can make false ones, and take none away."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from tests.unit.engine.kit import SECRET, RamKit
from tests.unit.threats.world import DAY, Kit, Thief
from vmbackup.engine.care.forget import by_name, by_policy, forget
from vmbackup.engine.replica.copy import Copier, CopyOptions
from vmbackup.errors import RepositoryError, UsageError
from vmbackup.progress import Silent
from vmbackup.repository import Repository, enrolling, tombstones
from vmbackup.repository.collect import PruneOptions, prune
from vmbackup.repository.doubt import doubtful
from vmbackup.repository.enrolling import revoke
from vmbackup.repository.layout import Lineage
from vmbackup.repository.points import COPY, Point, encode_table
from vmbackup.repository.quarantine import quarantined
from vmbackup.repository.replica import make_replica
from vmbackup.repository.resolve import in_quarantine, resolve
from vmbackup.repository.retention import Rules
from vmbackup.repository.session import Session
from vmbackup.repository.trust import Trust
from vmbackup.repository.writers import WriterKeys
from vmbackup.storage_backends import Store, open_store


@pytest.fixture(params=[False, True], ids=["unlocked", "locked"])
def kit(request: pytest.FixtureRequest, tmp_path: Path) -> Kit:
    return Kit(tmp_path, locked=request.param)


def forged(thief: Repository, victim: Point, like: Point, session: bytes, lineage: Lineage | None = None) -> Point:
    """A plain point with another one's content, in the place of `victim`."""
    made = Session(thief, lineage or victim.lineage, 0, "host1", lambda: session)
    made.pin()
    public = {**like.public, "time": victim.public["time"], "seq": victim.seq, "parent": victim.public["parent"]}
    point = made.commit(public, encode_table(like.table, like.uses), [])
    made.unpin()
    return point


def false_copy(thief: Repository, copy: Point, like: Point, last: int = 0) -> Point:
    """A copy with the same signed original, and another one's maps; its session is lower than any that is honest."""
    made = Session(thief, copy.lineage, 0, "host1", lambda: copy.origin + bytes(5) + bytes((last,)))
    made.pin()
    public = {
        "parent": None,
        "next_session_number": like.public["next_session_number"],
        "features": [],
        "disks": like.public["disks"],
        "original": copy.public["copied_from"],
    }
    point = made.commit(public, encode_table(like.table, like.uses), [], COPY, copy.verbatim)
    made.unpin()
    return point


def test_a_point_with_the_name_of_another_hides_nothing(kit: Kit) -> None:
    """Both are listed and told; each is named by more of its session; forgetting one forgets that one."""
    newest, victim, oldest = kit.points()
    false = forged(kit.thief(kit.enrolled("host1")), victim, oldest, victim.origin + bytes(6))
    assert (false.id, false.session < victim.session) == (victim.id, True)
    kit.reopen()
    found = kit.repository.read_points()
    assert {p.key for p in found.points} == {p.key for p in (newest, victim, oldest, false)}
    assert found.twins == []
    told = doubtful(kit.repository, found)
    assert {one.id for one in told} == {false.long_id, victim.long_id}
    assert {one.writer for one in told} == {"host1", "reader"}
    verified = kit.verify()
    assert (verified.damaged, {one.id for one in verified.doubtful}) == ((), {false.long_id, victim.long_id})
    for name in (victim.id, victim.session[6:10].hex(), victim.session[6:8].hex()):
        with pytest.raises(UsageError, match="names 2 restore points") as caught:
            resolve(found, name)
        assert victim.long_id in caught.value.hint
        assert false.long_id in caught.value.hint
    assert resolve(found, newest.id).key == newest.key
    assert resolve(found, victim.session[6:].hex()).key == victim.key
    assert kit.restored(resolve(found, victim.long_id)) == kit.kept[victim.id]
    forget(kit.repository, by_name(found, [resolve(found, false.long_id)]), found)
    assert {p.key for p in kit.points()} == {newest.key, victim.key, oldest.key}
    for _ in range(2):
        prune(kit.repository, PruneOptions(repack_below=0))
        kit.reopen()
        kit.check_all()
    assert kit.verify().doubtful == ()


def test_both_are_needed_until_they_are_forgotten(kit: Kit) -> None:
    """Nothing that either needs is collected, and the genuine one can go without the other too."""
    newest, victim, oldest = kit.points()
    false = forged(kit.thief(kit.enrolled("host1")), victim, newest, victim.origin + b"\xff" * 6)
    kit.bucket.now += 100 * DAY  # no lock is left
    for point in (newest, victim):
        found = kit.repository.read_points()
        forget(kit.repository, by_name(found, [resolve(found, found.name(point))]), found)
    prune(kit.repository, PruneOptions(repack_below=0))
    kit.reopen()
    points = {p.key: p for p in kit.points()}
    assert points.keys() == {false.key, oldest.key}
    assert kit.restored(points[false.key]) == kit.kept[newest.id]
    assert kit.restored(points[oldest.key]) == kit.kept[oldest.id]
    assert kit.verify().damaged == ()


@pytest.mark.parametrize("occupied", [False, True])
def test_the_session_of_another_history(kit: Kit, occupied: bool) -> None:
    """The whole session is that of a genuine point, in another history: it is another point, also where it is gone."""
    _, victim, oldest = kit.points()
    thief = kit.thief(kit.enrolled("host1"))
    elsewhere = Lineage("default", bytes(16))
    false = forged(thief, victim, oldest, victim.session, elsewhere)
    kit.reopen()
    found = kit.repository.read_points()
    assert {p.key for p in found.points} >= {victim.key, false.key}
    with pytest.raises(UsageError) as caught:
        resolve(found, victim.long_id)
    assert false.key in caught.value.hint
    assert resolve(found, victim.key).key == victim.key
    chosen = by_name(found, [resolve(found, false.key)], allow_last=True)
    if occupied:
        kit.bucket.put(elsewhere.trash(victim.session), b"garbage")
        with pytest.raises(RepositoryError, match="occupied"):
            forget(kit.repository, chosen, found)
        kit.bucket.objects.pop(elsewhere.trash(victim.session))
    forget(kit.repository, chosen, found)
    for _ in range(3):
        prune(kit.repository, PruneOptions(repack_below=0))
        kit.reopen()
        kit.check_all()
    found = kit.repository.read_points()
    forget(kit.repository, by_name(found, [resolve(found, victim.id)]), found)
    del kit.kept[victim.id]
    kit.bucket.now += 100 * DAY
    for _ in range(2):
        prune(kit.repository, PruneOptions(repack_below=0))
        kit.reopen()
        kit.check_all()
    assert not [key for key in kit.bucket.objects if victim.session.hex() in key and "trash/" in key]


def test_a_run_whose_session_is_committed_elsewhere_is_still_a_run(kit: Kit) -> None:
    """Its pin is seen by all of its group; a collector deletes nothing of it."""
    point = kit.points()[0]
    running = Session(kit.repository, point.lineage, 0, "host2")
    running.pin()
    kit.bucket.put(point.lineage.pack("data", running.id, 0), b"the first pack of a run")
    thief = kit.thief(kit.enrolled("host1"))
    forged(thief, point, point, running.id, Lineage("default", bytes(16)))
    for _ in range(2):
        prune(kit.repository, PruneOptions(repack_below=0, wait=0))
    assert point.lineage.pin(running.id) in kit.bucket.objects
    assert point.lineage.pack("data", running.id, 0) in kit.bucket.objects


def test_a_policy_forgets_neither_of_two_that_claim_one_run(kit: Kit) -> None:
    """And the genuine ones of other days keep their places."""
    newest, victim, oldest = kit.points()
    thief = kit.thief(kit.enrolled("host1"))
    for point in (newest, victim):
        forged(thief, point, oldest, point.origin + bytes(6))
    found = kit.repository.read_points()
    now = datetime.now(UTC) + timedelta(hours=1)
    verdicts = by_policy(found.points, Rules(last=1, timezone=ZoneInfo("UTC")), now)
    assert {v.point.key for v in verdicts if v.reasons} == {p.key for p in found.points}
    assert {v.reasons[-1] for v in verdicts if v.point.key != oldest.key} == {"doubtful"}


def test_a_point_older_than_its_key_is_told_and_pushes_none_out(kit: Kit) -> None:
    """A key that was enrolled today signs no point of last month."""
    points = kit.points()
    thief = kit.thief(kit.enrolled("host1"))
    old = int((time.time() - 30 * DAY) * 1000).to_bytes(6, "big") + os.urandom(10)
    false = forged(thief, points[0], points[-1], old)
    kit.reopen()
    found = kit.repository.read_points()
    assert [p.key for p in found.backdated] == [false.key]
    (told,) = doubtful(kit.repository, found)
    assert "older than the key" in told.problem
    now = datetime.now(UTC) + timedelta(hours=1)
    rules = Rules(last=1, timezone=ZoneInfo("UTC"))
    verdicts = by_policy(found.points, rules, now, backdated=found.backdated)
    assert points[0].key in {v.point.key for v in verdicts if v.reasons}


def test_what_is_in_quarantine_under_the_name_of_a_genuine_one_is_named_alone(kit: Kit) -> None:
    """Who follows the hint forgets the forged one."""
    _, victim, oldest = kit.points()
    keys = kit.enrolled("host1")
    revoke(kit.repository, "host1")
    false = forged(kit.thief(keys), victim, oldest, victim.origin + bytes(6))
    kit.reopen()
    found = kit.repository.read_points()
    (told,) = quarantined(kit.repository, found)
    assert told.id == false.long_id
    doubted = in_quarantine(found, told.id)
    assert doubted is not None
    assert doubted.key == false.key
    with pytest.raises(UsageError, match="and something in quarantine"):
        in_quarantine(found, victim.id)
    assert resolve(found, victim.id).key == victim.key
    tombstones.forget(kit.repository, doubted.lineage, doubted.session)
    kit.reopen()
    kit.check_all()


# Copies


class There:
    """A repository that the points are copied to."""

    def __init__(self, kit: Kit, root: Path, *, replica: bool) -> None:
        self.kit, self._root = kit, root
        self.store: Store = open_store(str(root / "there"), create=True)
        if replica:
            self.repository = make_replica(kit.repository, self.store, SECRET, Trust(None), "there")
        else:
            self.repository = Repository.create(self.store, SECRET, Trust(None), chunk_size=4096)[0]

    def copy(self, source: Repository | None = None, target: Repository | None = None) -> int:
        """Gives the number of points that were copied."""
        self.repository = Repository.open(self.store, SECRET, Trust(None))
        options = CopyOptions(self._root / "locks", workers=2)
        copier = Copier(source or self.kit.repository, target or self.repository, options, Silent())
        made: list[str] = []
        for history in copier.histories():
            assert copier.copy(history, lambda point: made.append(point.id)).failed == []
        return len(made)

    def restored(self, point: Point) -> dict[str, bytes]:
        here, self.kit.repository = self.kit.repository, self.repository
        try:
            return RamKit.restored(self.kit, point)
        finally:
            self.kit.repository = here


@pytest.mark.parametrize("replica", [True, False], ids=["replica", "other keys"])
def test_a_forged_point_here_or_there_keeps_no_genuine_one_from_being_copied(
    kit: Kit, tmp_path: Path, replica: bool
) -> None:
    """Each is copied as what it is, and a point that only has the name of a copy is none."""
    newest, victim, oldest = kit.points()
    there = There(kit, tmp_path, replica=replica)
    if replica:  # a key of the realm counts there too
        thief = kit.enrolled("host1")
        forged(kit.thief(thief), victim, oldest, victim.origin + bytes(6))
        assert there.copy() == 4
        kit.change(7)
        kit.backup()
        late = kit.points()[0]
        outside = Repository.open(there.store, SECRET, Trust(None))
        like = next(p for p in outside.read_points().points if p.id == oldest.id)
        forged(_thief_of(there.store, thief), late, like, late.origin + bytes(6), like.lineage)
        assert there.copy() == 1
    else:
        forged(kit.thief(kit.enrolled("host1")), victim, oldest, victim.origin + bytes(6))
        assert there.copy() == 4
    assert there.copy() == 0
    content = {p.key: kit.restored(p) for p in kit.points()}
    copies = there.repository.read_points().points
    for key, disks in content.items():
        point = next(p for p in kit.points() if p.key == key)
        assert disks in [there.restored(p) for p in copies if p.id == point.id]
    assert {p.id for p in (newest, victim, oldest)} <= {p.id for p in copies}


def _thief_of(store: Store, keys: WriterKeys) -> Repository:
    return Thief.open(store, keys, Trust(None))


def test_a_false_copy_replaces_none(kit: Kit, tmp_path: Path) -> None:
    """The signed original in it is genuine, its maps are not: a reader's copy stays, of two hosts' both are listed."""
    there = There(kit, tmp_path, replica=True)
    honest, thief = kit.enrolled("host2"), kit.enrolled("host1")
    assert there.copy() == 3
    copies = {p.id: p for p in there.repository.read_points().points}
    newest, victim, oldest = (copies[p.id] for p in kit.points())
    false = false_copy(_thief_of(there.store, thief), victim, oldest)
    found = Repository.open(there.store, SECRET, Trust(None)).read_points()
    assert {p.key for p in found.points} == {newest.key, victim.key, oldest.key}
    assert [(p.key, found.twin_of[p.key].key) for p in found.twins] == [(false.key, victim.key)]
    assert there.restored(victim) == kit.kept[victim.id]

    kit.change(8)
    kit.backup()
    assert there.copy(kit.thief(honest), _thief_of(there.store, honest)) == 1
    by_host = there.repository.read_points().points[0]
    false = false_copy(_thief_of(there.store, thief), by_host, oldest)
    again = false_copy(_thief_of(there.store, honest), by_host, oldest, 1)  # its key was stolen later
    os.utime(tmp_path / "there" / again.key, (time.time() + 5, time.time() + 5))
    found = Repository.open(there.store, SECRET, Trust(None)).read_points()
    assert {p.key for p in found.points if p.id == by_host.id} == {by_host.key, false.key}
    assert again.key in {p.key for p in found.twins}
    forget(there.repository, by_name(found, [resolve(found, found.name(false))]), found)
    found = there.repository.read_points()
    assert [p.key for p in found.points if p.id == by_host.id] == [by_host.key]
    assert there.copy() == 0


def test_a_point_stands_before_its_copies(kit: Kit, tmp_path: Path) -> None:
    """Where the original lies too, no copy of it is shown, whoever signed that."""
    there = There(kit, tmp_path, replica=True)
    there.copy()
    victim = kit.points()[1]
    copy = next(p for p in there.repository.read_points().points if p.id == victim.id)
    false = false_copy(kit.thief(kit.enrolled("host1")), copy, victim)
    kit.reopen()
    found = kit.repository.read_points()
    assert {p.key for p in found.points} & {victim.key, false.key} == {victim.key}
    assert [p.key for p in found.twins] == [false.key]
    kit.check_all()


def test_what_calls_itself_a_copy_of_other_keys_is_a_point_of_its_own(kit: Kit, tmp_path: Path) -> None:
    """Unless a reader signed it: nothing in it proves it."""
    there = There(kit, tmp_path, replica=False)
    assert there.copy() == 3
    copies = there.repository.read_points().points
    victim, oldest = copies[1], copies[2]
    keys = enrolling.new_writer(there.repository, "host9", "default", "backup")
    enrolling.enrol(there.repository, keys)
    made = forged(_thief_of(there.store, keys), victim, _claiming(oldest, victim), victim.origin + bytes(6))
    assert made.copied_from == victim.copied_from
    found = Repository.open(there.store, SECRET, Trust(None)).read_points()
    assert {p.key for p in found.points} == {p.key for p in copies} | {made.key}


def _claiming(like: Point, victim: Point) -> Point:
    return replace(like, public={**like.public, "copied_from": victim.copied_from})
