"""A flipped byte, a cut or missing object of every kind: told by verify and restore, never written as if right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.disk import Disk
from tests.lab.domain import Workhorse
from tests.real.engine.kit import SECRET, Kit, same
from vmbackup.engine.care.verify import VerifySummary, verify
from vmbackup.errors import DamageError, VmbackupError
from vmbackup.progress import Silent
from vmbackup.repository import Repository

MIB = 1 << 20
pytestmark = pytest.mark.real


def objects(kit: Kit) -> list[Path]:
    return sorted(p for p in (kit.root / "repository").rglob("*") if p.is_file())


def check(kit: Kit) -> VerifySummary:
    repository = Repository.open(kit.store, SECRET, kit.trust)
    return verify(repository, None, 1.0, Silent())


def damages(path: Path) -> list[tuple[str, bytes | None]]:
    whole = path.read_bytes()
    middle, last = len(whole) // 2, len(whole) - 1
    flips = [(f"flip {at}", whole[:at] + bytes((whole[at] ^ 4,)) + whole[at + 1 :]) for at in {20, middle, last}]
    return [("missing", None), ("cut", whole[: len(whole) // 2]), *flips]


@pytest.mark.timeout(600)
def test_damage_of_every_kind_is_told(make_domain: Callable[..., Workhorse], kit: Kit) -> None:
    """Whatever is done to whichever object: verify tells it, and a restore gives the right bytes or fails."""
    horse = make_domain(Disk("vda", size=8 * MIB), Disk("vdb", size=2 * MIB))
    horse.write("vda", 0, 3 * MIB, 0x11)
    horse.write_data("vdb", 0, bytes(range(256)) * 256)
    points = [kit.backup(horse)]
    copies = [{t: horse.copy(t) for t in ("vda", "vdb")}]
    horse.write("vda", MIB, 65536, 0x22)
    points.append(kit.backup(horse))
    copies.append({t: horse.copy(t) for t in ("vda", "vdb")})
    assert check(kit).damaged == ()
    assert check(kit).points == 2
    kinds = set()
    for path in objects(kit):
        kinds.add(path.relative_to(kit.root / "repository").parts[0])
        whole = path.read_bytes()
        for what, data in damages(path):
            if data is None:
                path.unlink()
            else:
                path.write_bytes(data)
            _judge(kit, f"{what} of {path}", [p.id for p in points], copies)
            path.write_bytes(whole)
    assert check(kit).damaged == ()
    assert kinds == {"config", "config.copy", "keys", "groups", "writers", "data", "meta", "index", "points"}


def _judge(kit: Kit, what: str, points: list[str], copies: list[dict[str, Path]]) -> None:
    try:
        found = check(kit)
    except DamageError:
        return  # nothing of the repository can be opened, and that is said with exit code 4
    except VmbackupError as error:
        pytest.fail(f"{what}: {error}")
    assert found.damaged, f"{what} was not found"
    suffering = {p for d in found.damaged for p in d.points}
    kit.repository = Repository.open(kit.store, SECRET, kit.trust)
    for number, point in enumerate(points):
        known = {p.id for p in kit.points()}
        if point not in known:
            assert point.rsplit("-", 1)[1] in suffering, what
            continue
        failure = _restore(kit, point, copies[number])
        if failure:
            assert point in suffering, f"{what}: {failure}"
            assert point in failure or "groups" in failure, f"{what}: {failure}"


def _restore(kit: Kit, point: str, copies: dict[str, Path]) -> str | None:
    """The message of a restore that failed; else its files are compared."""
    try:
        files = kit.restore(point, "raw").files
    except DamageError as error:
        return error.message
    for file in files:
        same(file.path, copies[file.target])
        file.path.unlink()
    return None
