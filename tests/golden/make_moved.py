"""Makes the golden repositories `v1-moved` and `v1-replica`: `python -m tests.golden.make_moved`. Never remade.

The first has chunks that were moved, and moved again, points that were forgotten, a revoked writer and a second epoch;
the second is a replica of it, whose chunks were moved there.
"""

from __future__ import annotations

import json
import random
import shutil

import pytest

from tests.golden.make import HERE, KIB
from tests.unit.copy.pair import ReplicaPair
from tests.unit.engine.kit import SECRET, RamKit, sha
from vmbackup.repository import Repository, enrolling, slots
from vmbackup.repository.collect import PruneOptions, prune
from vmbackup.repository.tombstones import forget
from vmbackup.repository.trust import Trust

SIZE = 512 * KIB
CHUNK = 4 * KIB


def make() -> None:
    kit = RamKit(HERE / "v1-moved", {"vda": SIZE + 512, "vdb": 64 * KIB}, CHUNK)
    chance = random.Random("v1-moved")
    kit.disk("vdb").write(8 * KIB, b"the second disk. " * 1000)
    for _ in range(5):
        scatter(kit, chance)
    thin(kit, kit.repository, (1, 3, 4))
    scatter(kit, chance)
    thin(kit, kit.repository, (1, 3))
    assert kit.repository.read_points().moves
    revoked_writer(kit, chance)
    recovery_keys: list[str] = []
    slots.rotate(kit.repository, SECRET, recovery_keys.append)
    kit.reopen()
    scatter(kit, chance)
    pair = ReplicaPair(kit)
    pair.copy()
    pair.reopen()
    scatter(kit, chance)
    forgotten = kit.points()[0]
    forget(kit.repository, forgotten.lineage, forgotten.session)
    expect(kit, kit.repository, "v1-moved", recovery_keys[0])
    thin(kit, pair.there, (0, 2))
    assert pair.found().moves
    (HERE / "v1-replica").mkdir()
    expect(kit, pair.there, "v1-replica", recovery_keys[0])
    (kit.root / "there").rename(HERE / "v1-replica" / "repository")
    for left in ("trust", "locks"):
        shutil.rmtree(kit.root / left, ignore_errors=True)


def scatter(kit: RamKit, chance: random.Random) -> str:
    """Small changes all over the disk, then a backup: each pack ends partly dead."""
    for _ in range(10):
        kit.disk().write(chance.randrange(SIZE // CHUNK) * CHUNK, chance.randbytes(CHUNK))
    return kit.backup().id


def thin(kit: RamKit, repository: Repository, kept: tuple[int, ...]) -> None:
    """Forgets all but these points, counted from the oldest, and repacks what is partly dead."""
    for number, point in enumerate(reversed(repository.read_points().points)):
        if number not in kept:
            forget(repository, point.lineage, point.session)
    prune(repository, PruneOptions(repack_below=100))


def revoked_writer(kit: RamKit, chance: random.Random) -> None:
    """A host makes a point and is revoked; what it makes afterwards counts for nothing."""
    keys = enrolling.new_writer(kit.repository, "hv1", "default", "backup")
    enrolling.enrol(kit.repository, keys)
    kit.repository = thief = Repository.open(kit.store, keys, Trust(None))
    scatter(kit, chance)
    kit.reopen()
    enrolling.revoke(kit.repository, "hv1")
    kit.repository = thief
    with pytest.MonkeyPatch.context() as patch:  # a program that asks nobody whether its key is good
        patch.setattr(Repository, "check_enrolled", lambda _: None)
        patch.setattr(Repository, "recheck", lambda _: None)
        del kit.kept[scatter(kit, chance)]
    kit.reopen()


def expect(kit: RamKit, repository: Repository, name: str, recovery_key: str) -> None:
    found = repository.read_points()
    expected = {
        "passphrase": "a passphrase for tests",
        "recovery_key": recovery_key,
        "partials": len(found.partials),
        "moves": len(found.moves),
        "points": [
            {
                "id": p.id,
                "seq": p.seq,
                "domain.xml": "<domain><name>guest</name></domain>",
                "disks": {t: {"size": len(d), "sha256": sha(d)} for t, d in kit.kept[p.id].items()},
            }
            for p in found.points
        ],
    }
    (HERE / name / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    make()
