"""A real Debian comes up again: beside itself as a copy, and as itself when all of it is gone."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import libvirt
import pytest

from tests.lab.agent import Agent
from tests.lab.guest import BOOT_TIMEOUT, Guest
from tests.lab.session import Lab
from tests.real.cli.test_commands import Program

pytestmark = [pytest.mark.real, pytest.mark.torture]
CONTENT = b"what nobody may lose\n" * 5000


@pytest.mark.timeout(900)
def test_it_comes_up_again(
    vmbackup: Program, make_guest: Callable[..., Guest], domain: Callable[[str], Any], lab: Lab, work_dir: Path
) -> None:
    """Its agent answers, its file is what it was, and its next backups are incremental."""
    guest = make_guest()
    guest.agent.put("/root/ledger", CONTENT)
    vmbackup("backup", guest.name)
    uuid = guest.domain.UUIDString()

    name = lab.new_name()
    restore = ("restore", guest.name, "--define", "--start", "--output")
    told = vmbackup(*restore, str(work_dir / "copy"), "--name", name)
    assert "is not logged" in told
    assert _ledger(domain(name)) == hashlib.sha256(CONTENT).hexdigest()
    domain(name).destroy()

    guest.domain.destroy()
    guest.domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
    guest.path("vda").unlink()
    vmbackup(*restore, str(work_dir / "itself"))
    guest.domain = domain(guest.name)
    assert guest.domain.UUIDString() == uuid
    assert _ledger(guest.domain) == hashlib.sha256(CONTENT).hexdigest()
    modes = [vmbackup.json("backup", guest.name)["points"][0]["disks"][0]["mode"] for _ in range(2)]
    assert modes == ["reread", "incremental"]
    shutil.rmtree(work_dir / "copy")


def _ledger(restored: Any) -> str:
    agent = Agent(restored)
    agent.wait(BOOT_TIMEOUT)
    return agent.run("sha256sum /root/ledger").split()[0]
