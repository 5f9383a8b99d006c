"""The lab's real guest: boots, answers, keeps what was written into it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.agent import GuestCommandError
from tests.lab.disk import Disk, MiB
from tests.lab.guest import Guest
from tests.lab.inspect_image import check_ext4, hashes, to_raw

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]   # the image may have to be made first


def test_a_guest_runs_commands_and_keeps_files(make_guest: Callable[..., Guest], work_dir: Path) -> None:
    """Commands give their output, failures their message; files survive a shutdown in good order."""
    guest = make_guest(overlay=True, disks=[Disk("vdb", 64 * MiB)])
    assert guest.agent.run("uname -s; lsblk -bno SIZE /dev/vdb").split() == ["Linux", str(64 * MiB)]
    with pytest.raises(GuestCommandError, match="No such file"):
        guest.agent.run("cat /nowhere")
    data = bytes(range(256)) * 1000
    guest.agent.put("/root/data", data)
    assert guest.agent.get("/root/data") == data
    guest.shutdown()
    assert not guest.domain.isActive()
    raw = to_raw(guest.path("vda"), work_dir / "vda.raw")
    check_ext4(raw)
    (work_dir / "files").mkdir()
    assert hashes(raw, ["/root"], work_dir / "files")["/root/data"] == hashlib.sha256(data).hexdigest()
