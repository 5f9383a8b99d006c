"""What was damaged in a bucket is repaired there, out of a replica in a folder, over a network that misbehaves."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.lab.fault_proxy import Fault, FaultProxy
from tests.unit.copy.pair import ReplicaPair
from tests.unit.engine.kit import SECRET, RamKit
from vmbackup.engine.care.repair import RepairOptions, repair
from vmbackup.progress import Silent
from vmbackup.repository import Repository
from vmbackup.repository.trust import Trust
from vmbackup.storage_backends import S3Settings, Store

pytestmark = pytest.mark.real

MIB = 1 << 20


def test_a_bucket_is_repaired(
    make_store: Callable[..., Store],
    settings: S3Settings,
    proxy: FaultProxy,
    overwrite: Callable[[str, bytes], None],
    client: Any,
    bucket: str,
    prefix: str,
    tmp_path: Path,
) -> None:
    """Chunks flipped, a map and an index gone: nothing is damaged afterwards, and every point restores."""
    kit = RamKit(tmp_path, {"vda": MIB}, store=make_store())
    chance = random.Random(20261124)
    for number in range(2):
        kit.disk().write(number * MIB // 2, chance.randbytes(MIB // 8))
        kit.backup()
    pair = ReplicaPair(kit)
    pair.copy()
    by_age = sorted((entry.key for entry in kit.store.list("")), key=lambda key: key.rpartition("/")[2])
    pack = next(key for key in by_age if key.startswith("data/"))
    data = kit.store.get(pack)
    overwrite(pack, data[:999] + b"?" + data[1000:])
    part = next(key for key in by_age if key.startswith("index/"))
    leaves = [key for key in by_age if key.startswith("meta/")][-1]
    for key in (part, leaves):
        client.delete_object(Bucket=bucket, Key=f"{prefix}/{key}")
    faults = [Fault(status=503, code="SlowDown"), Fault(give=700), Fault(send=1000)]
    proxy.faults = lambda _: chance.choice(faults) if chance.random() < 1 / 7 else None
    store = make_store(replace(settings, endpoint=proxy.http))
    done = repair(Repository.open(store, SECRET, Trust(None)), RepairOptions(True, pair.there), Silent())
    assert done.first.damaged
    assert done.last.damaged == ()
    kit.reopen()
    kit.check_all()
