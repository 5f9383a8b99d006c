"""Booting from the repository: at once, through the death of servers, and moved to local disks while it runs."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.disk import Disk, MiB, same_content
from tests.lab.domain import Workhorse
from tests.real.boot.kit import BootedGuest, Rig, qemu_io, running, wait
from tests.real.hypervisor.bootsector import tiny_file_system
from vmbackup.engine.images.qemu_img import image_info

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]  # a command is a process: seconds on a busy machine
Boot = Callable[..., BootedGuest]
DATA = 48 * MiB


@pytest.fixture
def horse(make_domain: Callable[..., Workhorse], rig: Rig) -> Workhorse:
    """A guest with a restore point; `copies` of its disks as they were then. It has changed since."""
    horse = make_domain(Disk("vda", size=256 * MiB), Disk("vdb", size=32 * MiB, cluster_size=2 * MiB))
    horse.write_data("vda", MiB, os.urandom(DATA))
    horse.write("vdb", 0, 3 * MiB, 0x22)
    horse.domain.setAutostart(1)  # which no booted guest takes over
    rig.program.json("backup", horse.name)
    horse.copies = {target: horse.copy(target) for target in ("vda", "vdb")}
    horse.write("vda", 2 * MiB, MiB, 0x99)
    return horse


def write(guest: BootedGuest, horse: Workhorse) -> None:
    """Writes into the booted guest, and the same into the copies: with what is needed of old clusters around it."""
    for target, command in (("vda", "write -P 0x77 5000000 100000"), ("vdb", "write -P 0x78 1000 512")):
        assert guest.io(target, command) == ""
        qemu_io(horse.copies[target], command)


def check_finished(guest: BootedGuest, horse: Workhorse, output: Path) -> None:
    """Its disks hold what they should and hang on nothing; nothing else is left of the boot."""
    inactive = guest.domain.XMLDesc(2)
    for trace in ("nbd", "backingStore", "error_policy"):
        assert trace not in inactive, inactive
    assert "nbd" not in guest.domain.XMLDesc(0)
    for target, copy in horse.copies.items():
        image = output / f"{target}.qcow2"
        assert str(image) in inactive
        assert "backing-filename" not in image_info(image)
        assert same_content(image, copy) is None
    assert image_info(output / "vdb.qcow2")["cluster-size"] == 2 * MiB
    assert guest.rig.left() == []


def check_restored(rig: Rig, guest: BootedGuest, horse: Workhorse, folder: Path) -> None:
    """The newest restore point of a booted guest is what its disks hold."""
    rig.program.json("restore", guest.name, "--output", str(folder))
    assert all(same_content(folder / f"{target}.qcow2", copy) is None for target, copy in horse.copies.items())


def follow(guest: BootedGuest, target: str = "vda", mebibytes: int = 4) -> None:
    """Waits for the copy to be under way, and makes it slow."""
    import libvirt

    def slow() -> bool:
        try:
            guest.domain.blockJobSetSpeed(target, mebibytes, 0)
        except libvirt.libvirtError:
            return False
        return bool(guest.domain.blockJobInfo(target, 0))

    wait(slow, "the copy to begin")


def qemu(guest: BootedGuest) -> int:
    """The process that runs it."""
    return int(Path(f"/run/libvirt/qemu/{guest.name}.pid").read_text())


def kill_qemu(guest: BootedGuest) -> None:
    """kill -9; returns when libvirt knows."""
    os.kill(qemu(guest), signal.SIGKILL)
    wait(lambda: not guest.domain.isActive(), "the end of the guest")


def test_a_guest_runs_from_the_repository_and_is_moved_while_it_runs(
    boot: Boot, horse: Workhorse, rig: Rig, work_dir: Path
) -> None:
    """At once, as another guest; it is no job's until it stands alone, and then like any other."""
    guest = boot(f"{horse.name}@latest")
    assert guest.told["uuid"] == guest.domain.UUIDString() != horse.uuid
    assert guest.domain.isActive()
    assert not guest.domain.autostart()
    assert "<interface" not in guest.domain.XMLDesc(0)
    assert (guest.listed["state"], guest.listed["served"], guest.listed["phase"]) == ("running", True, "booted")
    for target, copy in horse.copies.items():
        assert same_content(guest.overlay(target), copy) is None
    write(guest, horse)
    planned = rig.program.json("backup", "--job", "all", "--dry-run")["plans"]
    assert guest.name not in [plan["domain"] for plan in planned]

    rig.program.json("backup", guest.name)  # by name it is backed up rightly at any time
    check_restored(rig, guest, horse, work_dir / "hanging")
    command = "write -P 0x79 9000000 70000"  # recorded by a bitmap of an image that goes
    assert guest.io("vda", command) == ""
    qemu_io(horse.copies["vda"], command)

    output = work_dir / "disks"
    done = rig.program.json("boot", "--finish", guest.name, "--output", str(output))
    assert done["running"]
    assert [file["path"] for file in done["files"]] == [str(output / f"{t}.qcow2") for t in ("vda", "vdb")]
    check_finished(guest, horse, output)
    assert (guest.domain.autostart(), horse.domain.autostart()) == (0, 1)
    planned = rig.program.json("backup", "--job", "all", "--dry-run")["plans"]
    assert guest.name in [plan["domain"] for plan in planned]
    (point,) = rig.program.json("backup", guest.name)["points"]
    assert {disk["mode"] for disk in point["disks"]} == {"reread"}
    write(guest, horse)
    (point,) = rig.program.json("backup", guest.name)["points"]
    assert {disk["mode"] for disk in point["disks"]} == {"incremental"}
    check_restored(rig, guest, horse, work_dir / "alone")


def test_the_move_survives_the_death_of_command_and_server(
    boot: Boot, horse: Workhorse, rig: Rig, work_dir: Path
) -> None:
    """kill -9 of the command and of the server: the same command goes on, and what was copied stays."""
    guest, output = boot(horse.name), work_dir / "disks"
    write(guest, horse)
    finish = rig.program.command("--json", "boot", "--finish", guest.name)
    with running([*finish, "--output", str(output)]) as first:
        follow(guest)
        wait(lambda: guest.domain.blockJobInfo("vda", 0).get("cur", 0) > 8 * MiB, "some progress")
        first.kill()
    assert guest.domain.blockJobInfo("vda", 0)  # QEMU goes on
    other = rig.program.run("boot", "--finish", guest.name, "--output", str(work_dir / "other"))
    assert other.returncode == 2
    assert f"on its way to {output} already" in other.stderr
    with running(finish) as second:
        follow(guest)
        guest.kill_server()
        said, errors = second.communicate()
    assert second.returncode == 0, said + errors
    assert '"running": true' in said
    check_finished(guest, horse, output)


def test_the_move_survives_the_death_of_qemu(boot: Boot, horse: Workhorse, rig: Rig, work_dir: Path) -> None:
    """Its disks are whole all the same; the guest is not started behind its owner's back."""
    guest, output = boot(horse.name), work_dir / "disks"
    write(guest, horse)
    with running(rig.program.command("--json", "boot", "--finish", guest.name, "--output", str(output))) as finish:
        follow(guest)
        os.kill(qemu(guest), signal.SIGKILL)
        said, errors = finish.communicate()
    assert finish.returncode == 0, said + errors
    assert ('"running": false' in said, '"state": "off"' in said) == (True, True)
    assert not guest.domain.isActive()
    check_finished(guest, horse, output)


def test_a_disk_that_was_copied_before_qemu_died_is_whole(
    boot: Boot, horse: Workhorse, rig: Rig, work_dir: Path
) -> None:
    """QEMU says that a disk hangs on nothing before it has written all tables: nobody takes it at its word."""
    guest, output = boot(horse.name), work_dir / "disks"
    write(guest, horse)
    finish = rig.program.command("--json", "boot", "--finish", guest.name, "--output", str(output))
    with running(finish) as first:
        follow(guest)
        first.kill()
    guest.domain.blockJobSetSpeed("vda", 0, 0)
    wait(lambda: "backing-filename" not in image_info(output / "vda.qcow2"), "the end of the copy")
    kill_qemu(guest)
    assert same_content(output / "vda.qcow2", horse.copies["vda"]) is not None
    guest.domain.create()
    refusal = rig.program.refusal
    refusal("boot", "--finish", guest.name, code=1, says="vda.qcow2 lacks data: QEMU died before")
    guest.domain.destroy()
    rig.program.json("boot", "--start", guest.name)
    assert same_content(output / "vda.qcow2", horse.copies["vda"]) is None
    assert rig.program.json("boot", "--finish", guest.name)["running"]
    check_finished(guest, horse, output)


def test_a_guest_that_its_owner_paused_is_moved_and_stays_paused(
    boot: Boot, horse: Workhorse, rig: Rig, work_dir: Path
) -> None:
    """What QEMU holds of its disks is in their files all the same."""
    guest = boot(horse.name)
    write(guest, horse)
    guest.domain.suspend()
    done = rig.program.run("boot", "--finish", guest.name, "--output", str(work_dir / "disks"))
    assert f"{guest.name} is paused, and needs the repository no more" in done.stdout
    assert guest.domain.state()[0] == 3  # paused
    kill_qemu(guest)
    check_finished(guest, horse, work_dir / "disks")


def test_a_guest_that_is_off_is_moved_and_stays_off(boot: Boot, horse: Workhorse, rig: Rig, work_dir: Path) -> None:
    guest = boot(horse.name)
    write(guest, horse)
    guest.domain.destroy()
    assert guest.listed["state"] == "off"
    done = rig.program.json("boot", "--finish", guest.name, "--output", str(work_dir / "disks"))
    assert not done["running"]
    assert not guest.domain.isActive()
    check_finished(guest, horse, work_dir / "disks")


def test_a_discarded_guest_leaves_nothing(boot: Boot, horse: Workhorse, rig: Rig, work_dir: Path) -> None:
    """Also in the middle of its move; the restore point is as it was."""
    guest, output = boot(horse.name), work_dir / "disks"
    with running(rig.program.command("boot", "--finish", guest.name, "--output", str(output))) as finish:
        follow(guest)
        busy = rig.program.run("boot", "--discard", guest.name)
        assert busy.returncode == 1
        assert f"another 'vmbackup boot' works on {guest.name}" in busy.stderr
        finish.kill()
    rig.program.json("boot", "--discard", guest.name)
    assert rig.left() == []
    assert not output.exists()
    assert guest.name not in [domain.name() for domain in rig.lab.connection.listAllDomains()]
    assert rig.program.run("boot", "--discard", guest.name).returncode == 5
    rig.program.json("verify", "--read-data")


def test_what_is_booted_may_be_forgotten_and_pruned(boot: Boot, horse: Workhorse, rig: Rig, work_dir: Path) -> None:
    """It stays for as long as the guest hangs on it, though its server dies after that; then it goes."""
    point = rig.program.json("list")["points"][0]["id"]
    rig.program.json("backup", "--full", horse.name)
    guest = boot(point)
    rig.program.json("forget", point)
    pruned = rig.program.json("prune", "--wait", "0s")
    assert pruned["left"]["waited_for"], pruned
    guest.kill_server()
    for target, copy in horse.copies.items():
        assert same_content(guest.overlay(target), copy) is None
    rig.program.json("boot", "--discard", guest.name)
    assert not rig.program.json("prune", "--wait", "0s")["left"]["waited_for"]


def test_a_keeper_that_was_killed_leaves_the_server_at_work(boot: Boot, horse: Workhorse, rig: Rig) -> None:
    """`--start` keeps it again, without starting another one; and brings back a server that died meanwhile."""
    guest = boot(horse.name)
    server = guest.server()
    os.kill(guest.keeper(), signal.SIGKILL)
    wait(lambda: guest.io("vda", "read 60M 1M") == "", "a read")
    rig.program.json("boot", "--start", guest.name)
    assert guest.server() == server
    os.kill(guest.keeper(), signal.SIGKILL)
    os.kill(server, signal.SIGKILL)
    wait(lambda: not guest.listed["served"], "the death of the server to be seen")
    guest.domain.destroy()
    rig.program.json("boot", "--start", guest.name)
    assert guest.domain.isActive()
    assert guest.server() != server
    assert same_content(guest.overlay("vda"), horse.copies["vda"]) is None


def test_a_boot_that_was_killed_is_made_again(boot: Boot, horse: Workhorse, rig: Rig) -> None:
    """At any moment of it, by the same command."""
    name = rig.lab.new_name()
    guest = BootedGuest(rig, name)
    command = rig.program.command("--json", "boot", horse.name, "--name", name)
    try:
        for sign in (rig.state / f"{name}.json", guest.overlay("vdb")):
            with running(command) as process:
                wait(sign.exists, "the moment")
                process.kill()
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert same_content(guest.overlay("vda"), horse.copies["vda"]) is None
    finally:
        guest.remove()


def test_refusals_leave_nothing(boot: Boot, horse: Workhorse, rig: Rig, work_dir: Path) -> None:
    """Each says what is wrong and what to do; the guest that runs is not disturbed."""
    guest = boot(horse.name)
    refusal = rig.program.refusal
    refusal("boot", horse.name, "--name", horse.name, code=1, says=f"there is a domain {horse.name} already")
    refusal("boot", horse.name, "--name", guest.name, code=1, says=f"a guest {guest.name} is booted already")
    new = rig.lab.new_name()
    refusal("boot", "nobody", "--name", new, code=5, says="there is no restore point")
    refusal("boot", horse.name, "--name", new, "--network", "nowhere", code=2, says="has no network interface")
    taken = work_dir / "taken"
    taken.mkdir()
    (taken / "vdb.qcow2").touch()
    refusal("boot", "--finish", guest.name, "--output", str(taken), code=1, says="is already there")
    closed = work_dir / "closed"
    closed.mkdir(mode=0o700)
    refusal("boot", "--finish", guest.name, "--output", str(closed), code=1, says=f"may not pass {closed}")
    small = work_dir / "small"
    small.mkdir(mode=0o711)
    with tiny_file_system(small, "8m"):
        refusal("boot", "--finish", guest.name, "--output", str(small), code=1, says="has 8 MiB free")
    assert guest.listed["phase"] == "booted"
    assert guest.io("vda", "read 60M 1M") == ""
    rig.program.json("boot", "--discard", guest.name)
    packs = sorted((work_dir / "repository" / "data").rglob("*-*"))
    packs[0].rename(work_dir / "away")
    refusal("boot", horse.name, "--name", new, code=4, says="is damaged")
    (work_dir / "repository").rename(work_dir / "gone")
    refusal("boot", horse.name, "--name", new, code=5, says="repository")
    assert rig.left() == []


def test_the_repository_goes_away_and_comes_back(boot: Boot, horse: Workhorse, rig: Rig, work_dir: Path) -> None:
    """The move says why it ends, and goes on by the same command when the repository can be reached again."""
    guest, output = boot(horse.name), work_dir / "disks"
    (work_dir / "repository").rename(work_dir / "gone")
    os.kill(guest.server(), signal.SIGKILL)
    wait(lambda: bool(guest.listed["error"]), "the failure to be told")
    failed = rig.program.run("boot", "--finish", guest.name, "--output", str(output))
    assert failed.returncode != 0
    assert str(work_dir / "repository") in failed.stderr
    (work_dir / "gone").rename(work_dir / "repository")
    wait(lambda: guest.listed["served"], "the server to come back")
    rig.program.json("boot", "--finish", guest.name, "--output", str(output))
    check_finished(guest, horse, output)

