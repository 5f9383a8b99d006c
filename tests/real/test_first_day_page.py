"""docs/first-day.md where no guest need boot: the repository and its keys, and the service that does all by itself.

The whole page is followed with a real guest by `make rehearse`.
"""

from __future__ import annotations

import json
import os

import pytest

from tests.lab import machine
from tests.lab.ceph import Ceph
from tests.lab.disk import Disk
from tests.lab.domain import Workhorse
from tests.lab.session import FOLDER_MODE, Lab
from tests.lab.stage import Stage

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


def test_the_repository_and_the_service(lab: Lab, ceph: Ceph) -> None:
    """After the job a restore point lies off the site."""
    with Stage(lab, ceph, "first-day.md", ("web1",)) as stage:
        folder = stage.folder / "web1"
        folder.mkdir(mode=FOLDER_MODE)
        os.chown(folder, *machine.qemu_user())
        horse = Workhorse(lab.connection, stage.names["web1"], folder, [Disk()])
        horse.start()
        horse.write("vda", 0, 1 << 20, 0xAB)
        page = stage.follower({
            "/var/lib/vmbackup/repository": f"{stage.folder}/repository",
            "http://127.0.0.1:9847/": f"http://127.0.0.1:{stage.port}/",
            'domains = ["*"]': stage.domains,
            "vmbackup doctor web1": "true",   # would miss the agent
        })
        page.follow("3.", "11.")
        told = json.loads(stage.run("vmbackup", "--repository", "offsite", "--json", "list", horse.name))
        assert [point["domain"] for point in told["points"]] == [horse.name]
