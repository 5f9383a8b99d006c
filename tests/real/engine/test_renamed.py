"""A guest that gets another name: it is its UUID, and goes on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.lab.disk import Disk, MiB
from tests.lab.domain import LOG_DIR, Workhorse
from tests.real.engine.kit import Kit

pytestmark = pytest.mark.real


def test_a_guest_that_is_renamed(make_domain: Callable[..., Workhorse], kit: Kit) -> None:
    """One history, incremental, off and on."""
    horse = make_domain(Disk(size=MiB))
    horse.write("vda", 0, 65536, 1)
    first = kit.backup(horse)
    horse.stop()
    for log in LOG_DIR.glob(f"{horse.name}.log*"):
        log.unlink()
    horse.domain.rename(f"{horse.name}-new")
    horse.name += "-new"
    second = kit.backup(horse)
    horse.start()
    horse.write("vda", 65536, 65536, 2)
    third = kit.backup(horse)
    assert (second.parent, third.parent) == (first.id, second.id)
    assert [disk.mode for point in (second, third) for disk in point.disks] == ["incremental"] * 2
    kit.check(horse, third.id)
    assert len(horse.checkpoints()) == 1
