"""`vmbackup forget` and `vmbackup prune` on a real repository of guests in memory."""

from __future__ import annotations

import random
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.ram import RamDisk, RamGuest
from tests.unit.cli.conftest import Run
from tests.unit.engine.kit import RamKit
from vmbackup.repository import damage
from vmbackup.repository.condemned import ObjectName
from vmbackup.repository.session import Session

MIB = 1 << 20
START = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0) - timedelta(days=20)


@pytest.fixture
def kit(tmp_path: Path) -> RamKit:
    """A guest with a point a day for ten days, each with half a MiB of its own."""
    made = RamKit(tmp_path, {"vda": 4 * MIB})
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "passphrase").write_text("a passphrase for tests")
    (secrets / "passphrase").chmod(0o600)
    for day in range(10):
        made.host.now = lambda day=day: START + timedelta(days=day)
        made.disk().write(0, random.Random(day).randbytes(MIB // 2))
        made.backup()
    return made


def forgotten(kit: RamKit, *ids: str) -> None:
    for point_id in ids:
        del kit.kept[point_id]


def size(kit: RamKit) -> int:
    return sum(entry.size for folder in ("data/", "meta/", "index/") for entry in kit.store.list(folder))


def test_by_policy_and_then_prune(run: Run, kit: RamKit) -> None:
    """Forgets what no rule keeps, tells why the rest stays, and frees what only the forgotten took."""
    ids = [point.id for point in kit.points()]
    shown = run("forget", "--keep-daily", "3", "--dry-run")
    assert shown.code == 0
    assert "7 restore points would be forgotten, 3 kept." in shown.out
    assert [line.split()[0] for line in shown.out.splitlines()[1:4]] == ids[:3]
    assert "daily 3" in shown.out
    assert len(kit.points()) == 10
    done = run("--json", "forget", "--keep-daily", "3").json
    assert sorted(done["forgotten"]) == sorted(ids[3:])
    assert {kept["id"]: kept["reasons"] for kept in done["kept"]} == {
        ids[n]: [f"daily {n + 1}"] for n in range(3)
    }
    forgotten(kit, *ids[3:])
    kit.check_all()
    before = size(kit)
    plan = run("--json", "prune", "--dry-run").json["pruned"]
    assert size(kit) == before
    freed = run("--json", "prune").json["pruned"]
    assert (plan["objects"], plan["bytes"]) == (freed["objects"], freed["bytes"])
    assert before - size(kit) == freed["bytes"] > 3 * MIB
    kit.reopen()
    kit.check_all()
    again = run("prune")
    assert (again.code, again.out.split(",")[0]) == (0, "0 objects")
    kit.disk().write(MIB, b"x" * 100_000)
    assert kit.backup().disks[0].mode == "incremental"
    kit.check_all()


def newest_pack(kit: RamKit) -> Path:
    """The data pack that only the newest point needs."""
    (key,) = [entry.key for entry in kit.store.list("data/") if kit.points()[0].session.hex() in entry.key]
    return kit.root / "repository" / key


def reasons(run: Run, *words: str) -> dict[str, list[str]]:
    return {kept["id"]: kept["reasons"] for kept in run("--json", "forget", *words, "--dry-run").json["kept"]}


@pytest.mark.parametrize("told_by", ["a record", "this host's verify"])
def test_a_damaged_point_takes_no_place_of_a_good_one(run: Run, kit: RamKit, told_by: str) -> None:
    """It stays, for it may be healed; the newest that can be restored stays too, and restores."""
    ids, pack = [point.id for point in kit.points()], newest_pack(kit)
    data = bytearray(pack.read_bytes())
    data[100] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(data)
    assert run("verify", "--read-data").code == 4
    gone = kit.root / ("state/verified" if told_by == "a record" else "repository/damage")
    shutil.rmtree(gone)
    assert reasons(run, "--keep-last", "1") == {ids[0]: ["last"], ids[1]: ["last 1"]}
    assert set(run("--json", "forget", "--keep-last", "1").json["forgotten"]) == set(ids[2:])
    assert run("prune", "--wait", "0s").code == 0
    forgotten(kit, *ids[2:], ids[0])
    kit.reopen()
    kit.check_all_but_damaged([ids[0]])


def test_a_false_record_of_damage_makes_nothing_be_forgotten(run: Run, kit: RamKit) -> None:
    """Records are signed by nobody: a stolen key may write them for points that are whole."""
    ids, name = [point.id for point in kit.points()], newest_pack(kit).name
    session, number = name.rsplit("-", 1)
    lineage = kit.points()[0].lineage
    damage.record(kit.store, lineage.group, [ObjectName("data", lineage.id, bytes.fromhex(session), int(number))])
    assert set(reasons(run, "--keep-last", "2")) == set(ids[:3])


def test_a_record_of_what_is_missing_stays_while_it_is_needed(run: Run, kit: RamKit) -> None:
    """Other hosts know of the damage by it alone; it goes with the last point that suffers."""
    newest_pack(kit).unlink()
    assert run("verify").code == 4
    assert list(kit.store.list("damage/"))
    assert run("prune", "--wait", "0s").code == 0
    assert list(kit.store.list("damage/"))
    assert run("forget", kit.points()[0].id).code == 0
    assert run("prune", "--wait", "0s").code == 0
    assert not list(kit.store.list("damage/"))


def test_a_name_that_two_guests_share_is_refused(run: Run, kit: RamKit) -> None:
    """Whole guests go by name, so the name must mean one."""
    kit.host.add(RamGuest("guest", {"vda": RamDisk(bytearray(MIB))}))
    kit.backup_guest("guest")
    refused = run("forget", "guest", "--allow-last")
    assert refused.code == 2
    assert "2 guests are called 'guest'" in refused.err
    assert kit.points()[0].uuid in refused.err


def test_by_name(run: Run, kit: RamKit) -> None:
    """A point in the middle goes, the chain stays whole."""
    ids = [point.id for point in kit.points()]
    assert run("forget", ids[4], ids[5].rpartition("-")[2]).code == 0
    assert run("prune").code == 0
    forgotten(kit, ids[4], ids[5])
    kit.reopen()
    kit.check_all()
    assert run("show", ids[4]).code == 5
    assert run("list").code == 0


def test_the_last_stays_unless_it_is_meant(run: Run, kit: RamKit) -> None:
    """All of a guest only with --allow-last; then nothing of it is left."""
    refused = run("forget", "guest")
    assert refused.code == 2
    assert "--allow-last" in refused.err
    assert len(kit.points()) == 10
    assert "newest" in run("forget", "--keep-within", "1h", "--dry-run").out
    assert run("forget", "guest", "--allow-last").code == 0
    assert run("prune").code == 0
    assert kit.points() == []
    assert size(kit) == 0
    kit.kept.clear()
    kit.reopen()
    assert kit.backup().disks[0].mode == "full"
    kit.check_all()


def test_each_domain_for_itself(run: Run, kit: RamKit) -> None:
    """A rule counts a domain's points; those of others are not touched where a domain is named."""
    kit.host.add(RamGuest("other", {"vda": RamDisk(bytearray(MIB))}))
    for day in range(3):
        kit.host.now = lambda day=day: START + timedelta(days=day)
        kit.backup_guest("other")
    done = run("--json", "forget", "other", "--keep-last", "1").json
    assert len(done["forgotten"]) == 2
    assert len(kit.points()) == 11
    done = run("--json", "forget", "--keep-last", "1").json
    assert len(done["forgotten"]) == 9
    assert {kept["domain"] for kept in done["kept"]} == {"guest", "other"}


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ([], 2, "nothing says what to forget"),
        (["--keep-last", "0"], 2, "keeps nothing"),
        (["--keep-within", "soon"], 2, "not a duration"),
        (["--job", "nightl"], 5, 'no job "nightl"'),
        (["--job", "nightly"], 2, "has no keep"),
        (["nobody", "--keep-last", "1"], 5, "nobody"),
        (["ffffffff"], 5, "ffffffff"),
    ],
)
def test_what_makes_no_sense_forgets_nothing(run: Run, kit: RamKit, arguments: list[str], code: int, text: str) -> None:
    result = run("forget", *arguments)
    assert (result.code, text in result.err) == (code, True)
    assert len(kit.points()) == 10


def test_a_damaged_point_stops_a_prune_until_it_is_forgotten(run: Run, kit: RamKit) -> None:
    """What it needs is not known: nothing is deleted. By its name it can be forgotten, and then all is well."""
    newest, *_, oldest = kit.points()
    run("forget", oldest.id)
    path = kit.root / "repository" / newest.key
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    before = size(kit)
    stopped = run("prune")
    assert stopped.code == 4
    assert "nothing was collected" in stopped.err
    assert size(kit) == before
    assert run("forget", newest.session[6:10].hex()).code == 0
    assert run("prune").code == 0
    assert size(kit) < before
    forgotten(kit, newest.id, oldest.id)
    kit.reopen()
    kit.check_all()


def test_a_running_backup_is_waited_for(run: Run, kit: RamKit, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one runs nothing goes that it may build on; what is left is told and taken by the next call."""
    lineage = kit.repository.lineage("libvirt", kit.guest.uuid)
    session = Session(kit.repository, lineage, 0, "other host")
    session.pin()
    run("forget", "--keep-last", "1")
    before = size(kit)
    waited = run("prune", "--wait", "1s")
    assert waited.code == 0
    assert "left to the next call" in waited.out
    assert session.id.hex() in waited.out
    assert size(kit) == before
    done = run("--json", "prune", "--dead-after", "0s", "--wait", "1s").json
    assert done["pruned"]["ended_sessions"] == 1
    assert size(kit) < before
    assert list(kit.store.list("sessions/")) == list(kit.store.list("condemned/")) == []


def test_a_forged_trash_counts_for_nothing(run: Run, kit: RamKit) -> None:
    """Only who may forget makes points go: a flipped or copied trash does not."""
    points = kit.points()
    run("forget", points[0].id)
    (trash,) = kit.store.list("trash/")
    data = kit.store.get(trash.key)
    for place in (points[1], points[2]):
        kit.store.put(place.lineage.trash(place.session), data if place is points[1] else data[:-1] + b"?")
    assert len(kit.points()) == 9
    assert run("prune").code == 0
    forgotten(kit, points[0].id)
    kit.reopen()
    assert len(kit.points()) == 9
