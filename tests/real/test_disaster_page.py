"""docs/disaster-day.md where no guest need boot: from a bucket and a recovery key to a guest, and to its disks.

The whole page is followed with a real guest by `make rehearse`.
"""

from __future__ import annotations

import pytest

from tests.lab.ceph import Ceph
from tests.lab.disk import same_content
from tests.lab.lost_host import LostHost
from tests.lab.session import Lab
from tests.lab.stage import Stage

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


def test_a_guest_and_its_disks_from_the_bucket_and_the_recovery_key(lab: Lab, ceph: Ceph) -> None:
    with Stage(lab, ceph, "disaster-day.md", ("db1",)) as stage:
        host = LostHost(stage, ceph)
        horse = host.workhorse("db1")
        then = horse.copy("vda").rename(stage.folder / "then.qcow2")
        host.backup(horse.name)
        horse.remove()
        page = stage.follower(host.exchanged())
        page.follow("1.", "2.", "3.", "4.")
        assert lab.connection.lookupByName(horse.name).isActive()
        page.follow("9.")
        assert same_content(then, stage.folder / "srv" / stage.names["db1"] / "vda.qcow2") is None
