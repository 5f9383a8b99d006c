"""qemu:///session: a user backs up his own guests, with his own libvirt and no root."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.lab import machine
from tests.lab.cli import Cli
from tests.lab.disk import Disk, MiB, same_content
from tests.lab.domain import Workhorse
from tests.lab.session import Lab
from tests.lab.user_session import UserSession

pytestmark = pytest.mark.real
K64 = 65536


def test_a_user_backs_up_his_own_guest(lab: Lab) -> None:
    """Whole, incremental, restored, all as that user."""
    folder = lab.new_folder("u")
    with UserSession(folder) as session:
        works = subprocess.run([*session.before, *Cli.program(), "--help"], capture_output=True, check=False)
        if works.returncode:
            pytest.skip("the virtual environment cannot be entered by other users: put it into a folder that can")
        home = folder / "home"
        home.mkdir()
        host = Cli(home, before=session.before, uri="qemu:///session")
        own(home)
        host.run("init")
        horse = Workhorse(session.connection, lab.new_name(), lab.new_folder("domain"), [Disk(size=4 * MiB)],
                          session.run_folder)
        horse.start()
        try:
            horse.write("vda", 0, MiB, 0x51)
            host.run("backup", horse.name)
            horse.write("vda", 2 * MiB, K64, 0x52)
            (point,) = host.run("backup", horse.name)["points"]
            assert [(disk["mode"], disk["changed_bytes"]) for disk in point["disks"]] == [("incremental", K64)]
            host.run("restore", point["id"], "--output", str(home / "restored"))
            horse.flush("vda")
            assert same_content(horse.path("vda"), home / "restored/vda.qcow2") is None
            assert list((home / "scratch").iterdir()) == []
        finally:
            horse.remove()


def own(folder: Path) -> None:
    """All of it is the user's."""
    for path in (folder, *folder.rglob("*")):
        shutil.chown(path, *machine.qemu_user())
    os.chmod(folder, 0o755)
