"""`reread_every` with real checkpoints: a disk whose bitmap is good is read whole when it is time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest

from tests.lab.disk import Disk
from tests.lab.domain import Workhorse
from tests.real.engine.kit import Kit
from vmbackup.engine.backup import wholereads
from vmbackup.engine.backup.plan import plan
from vmbackup.repository.tombstones import forget

MIB = 1 << 20
MONTH = timedelta(days=30)
pytestmark = pytest.mark.real


def test_a_disk_is_read_whole_when_it_is_time(
    make_domain: Callable[..., Workhorse], kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the point that did so last is forgotten; then only what changed is stored."""
    horse = make_domain(Disk("vda", size=8 * MIB), Disk("vdb", size=2 * MIB))
    horse.write("vda", 0, 4 * MIB, 0x11)
    kit.options = replace(kit.options, reread_every=MONTH)
    ahead = timedelta()
    contents = count(0x20)
    monkeypatch.setattr(wholereads, "_now", lambda: datetime.now(UTC) + ahead)

    def step() -> list[tuple[str, str | None]]:
        horse.write("vda", MIB, 65536, next(contents))
        planned = plan(kit.host, kit.repository, horse.name, kit.options)
        point = kit.backup(horse)
        kit.check(horse, point.id)
        made = [(str(disk.mode), disk.reason) for disk in point.disks]
        assert [(disk.mode, disk.reason) for disk in planned.included] == made
        return made

    assert step() == [("full", None)] * 2
    (first,) = kit.points()
    assert step() == [("incremental", None)] * 2
    forget(kit.repository, first.lineage, first.session)
    ahead = MONTH - timedelta(seconds=1)
    assert step() == [("reread", "scheduled")] * 2
    reread = kit.points()[0]
    assert reread.disks[0].read_bytes >= 4 * MIB
    assert reread.disks[0].changed_bytes == 65536
    ahead = timedelta()
    assert step() == [("incremental", None)] * 2
    assert {disk.read_whole for disk in kit.points()[0].disks} == {reread.time.isoformat(timespec="milliseconds")}
