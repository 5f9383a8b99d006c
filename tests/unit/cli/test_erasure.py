"""What is forgotten is forgotten: in spite of objects in the way, and with all that a guest left."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Run
from tests.unit.cli.test_forget_and_prune import MIB, START, kit, size
from tests.unit.collection.steps import MemoryStore
from tests.unit.engine.kit import RamKit
from vmbackup.errors import PointInTimeLostError
from vmbackup.repository import Repository, tombstones
from vmbackup.repository.keys import Secret
from vmbackup.repository.trust import Trust
from vmbackup.storage_backends import open_store

__all__ = ["kit"]


def test_a_forged_trash_does_not_keep_a_point_alive(run: Run, kit: RamKit) -> None:
    """Somebody who may not forget put bytes under the name of a trash: forgetting the point works all the same."""
    point = kit.points()[3]
    kit.store.put(point.lineage.trash(point.session), b"forged")
    assert run("forget", point.id).code == 0
    assert point.id not in {p.id for p in kit.points()}
    assert run("prune").code == 0
    del kit.kept[point.id]
    kit.reopen()
    assert [damage.object for damage in kit.verify().damaged] == [point.lineage.trash(point.session)]
    assert {p.id: kit.restored(p) for p in kit.points()} == kit.kept


def test_a_replicas_trash_counts_for_nothing_here(kit: RamKit) -> None:
    """Repositories of one realm share the keys; what was forgotten in one may not be played back into another."""
    point, here = kit.points()[3], kit.repository
    elsewhere = MemoryStore()
    replica = Repository(elsewhere, here.identity, replace(here.config, repository=bytes(16)), Trust(None))
    key = point.lineage.trash(point.session)
    tombstones.forget(replica, point.lineage, point.session)
    tombstones.put_dead(replica, "default", [point.session])
    assert len(elsewhere.objects) == 2
    for name, (data, _) in elsewhere.objects.items():
        kit.store.put(name, data)
    assert kit.store.stat(key)
    assert point.id in {p.id for p in kit.points()}


def test_the_head_stays_though_its_clock_ran_behind(run: Run, kit: RamKit) -> None:
    """What the next backup builds on is not forgotten by a rule, however old it says it is."""
    kit.host.now = lambda: START - timedelta(days=400)
    head = kit.backup()
    kept = {k["id"]: k["reasons"] for k in run("--json", "forget", "--keep-last", "1").json["kept"]}
    assert kept[head.id] == ["newest"]
    assert len(kept) == 2


def test_erasing_a_guest_takes_its_partials_and_damaged_points(run: Run, kit: RamKit) -> None:
    """Nothing of it is left: neither what a failed run stored, nor a point that cannot be read."""

    def lost() -> None:
        raise PointInTimeLostError("gone")

    kit.host.on_seal = lost
    kit.disk().write(2 * MIB, random.Random(99).randbytes(MIB))
    with pytest.raises(PointInTimeLostError):
        kit.backup()
    assert len(kit.repository.read_points().partials) == 1
    path = kit.root / "repository" / kit.points()[5].key
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert run("forget", "guest", "--allow-last").code == 0
    assert run("prune").code == 0
    assert size(kit) == 0
    assert list(kit.store.list("points/")) == []


def test_a_recovery_key_that_may_open_something_is_kept(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An init that fails when the config may be there already deletes no key of it."""
    original = Repository._put_config

    def put(self: Repository, document: dict[str, object]) -> None:
        original(self, document)
        raise OSError("the store went away")

    with monkeypatch.context() as patch:
        patch.setattr(Repository, "_put_config", put)
        assert run("init").code == 1
    text = (tmp_path / "secrets" / "recovery-key-local").read_text().strip().splitlines()[-1]
    store = open_store(f"file://{tmp_path}/repository")
    assert Repository.open(store, Secret.passphrase(text), Trust(None)).id
