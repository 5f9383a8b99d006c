"""A guest that moves between hypervisors: the next backup, made where it then runs, is incremental."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import libvirt
import pytest

from tests.lab.cli import Cli, CliError
from tests.lab.disk import Disk, MiB
from tests.lab.domain import RUN_FOLDER, Workhorse
from tests.lab.second import SecondLibvirt
from tests.lab.session import Lab
from tests.real.hypervisor.conftest import Shadow
from vmbackup.hypervisor import Host
from vmbackup.hypervisor.live.job import LiveJob

pytestmark = pytest.mark.real
MakeDomain = Callable[..., Workhorse]
K64 = 65536


@dataclass
class Pair:
    """One guest, one repository, two hosts with a state folder of their own each."""

    lab: Lab
    horse: Workhorse
    second: SecondLibvirt
    here: Cli
    there: Cli
    folder: Path

    def go(self, *, undefine: bool = True) -> None:
        """The guest moves to the second host."""
        self.horse.migrate(self.second.connection, self.second.run_folder, undefine=undefine)

    def come_back(self, *, undefine: bool = True) -> None:
        """And back."""
        self.horse.migrate(self.lab.connection, RUN_FOLDER, undefine=undefine)

    def backup(self, host: Cli) -> dict[str, tuple[str, str | None, int]]:
        """Backs it up there: target -> mode, reason and bytes changed."""
        (point,) = host.run("backup", self.horse.name)["points"]
        assert point["status"] == "success"
        return {disk["target"]: (disk["mode"], disk["reason"], disk["changed_bytes"]) for disk in point["disks"]}

    def compare(self) -> None:
        """The newest restore point is what the guest's disks are now."""
        folder = self.folder / "restored"
        self.here.run("restore", f"{self.horse.name}@latest", "--output", str(folder))
        for target in self.horse.disks:
            self.horse.compare(target, folder / f"{target}.qcow2")
        shutil.rmtree(folder)


def make_pair(lab: Lab, horse: Workhorse, second: SecondLibvirt, folder: Path) -> Pair:
    """Both hosts, and a new repository."""
    for name in ("here", "there"):
        (folder / name).mkdir(mode=0o755)
    here = Cli(folder / "here")
    here.run("init")
    return Pair(lab, horse, second, here, Cli(folder / "there", before=second.beside, home=folder / "here"), folder)


@pytest.fixture
def pair(lab: Lab, make_domain: MakeDomain, second: SecondLibvirt, work_dir: Path) -> Pair:
    """With this machine's libvirt on both sides."""
    return make_pair(lab, make_domain(Disk(size=8 * MiB), Disk("vdb", size=4 * MiB)), second, work_dir)


@pytest.fixture
def mixed(lab: Lab, make_domain: MakeDomain, trixie: SecondLibvirt, work_dir: Path) -> Pair:
    """With Debian 13's on the other."""
    return make_pair(lab, make_domain(Disk(size=8 * MiB), Disk("vdb", size=4 * MiB)), trixie, work_dir)


def there_and_back(pair: Pair, *, turns: int = 1) -> None:
    """Each host's first backup after the guest's arrival reads what changed since the other one's.

    The first host keeps it defined as it goes, with its record of a checkpoint that the other then removes; the other
    one forgets it.
    """
    pair.horse.write("vda", 0, MiB, 0x11)
    pair.backup(pair.here)
    for turn in range(turns):
        pair.horse.write("vda", 2 * MiB, K64, 0x20 + turn)
        pair.go(undefine=False)
        pair.horse.write("vdb", MiB, K64, 0x30 + turn)
        found = pair.backup(pair.there)
        assert found == {"vda": ("incremental", None, K64), "vdb": ("incremental", None, K64)}
        pair.compare()
        pair.horse.zero("vda", turn * K64, K64)
        pair.horse.write("vda", 4 * MiB, K64, 0x40 + turn)
        pair.come_back()
        found = pair.backup(pair.here)
        assert found == {"vda": ("incremental", None, 2 * K64), "vdb": ("incremental", None, 0)}
        pair.compare()
        assert len(pair.horse.checkpoints()) == 1
        for target in pair.horse.disks:
            ours = [name for name in pair.horse.bitmaps(target) if name.startswith("vmbackup-")]
            assert ours == pair.horse.checkpoints()


def test_a_guest_that_moves_stays_incremental(pair: Pair) -> None:
    """There and back, with a host that keeps it defined, and one that forgets it."""
    there_and_back(pair)


@pytest.mark.torture
@pytest.mark.versions
def test_between_debian_12_and_13(mixed: Pair) -> None:
    """Both ways, with what each version makes of the other's bitmaps."""
    there_and_back(mixed, turns=2)


@pytest.mark.torture
@pytest.mark.versions
def test_a_migration_during_a_backup_is_refused(pair: Pair, host: Host) -> None:
    """libvirt lets the guest go when the backup has ended; both are whole."""
    shadow = Shadow(host, pair.horse)
    with shadow.begin() as running:
        images = shadow.read(running)
        with pytest.raises(libvirt.libvirtError, match="state change lock"):
            pair.go()
        running.seal()
        shadow.commit(running, images)
    pair.go()
    pair.horse.write("vda", 0, K64, 1)
    assert pair.backup(pair.there)["vda"][0] == "full"
    pair.come_back()
    shadow.run()
    assert shadow.modes["vda"] == "incremental"
    shadow.compare(pair.folder)


@pytest.mark.torture
def test_the_host_that_it_has_left_refuses(pair: Pair, host: Host) -> None:
    """A guest that is off there has moved, as libvirt knows: its images are at work elsewhere."""
    pair.backup(pair.here)
    pair.go(undefine=False)
    with pytest.raises(CliError, match="was migrated away: its images are another host's now"):
        pair.here.run("backup", pair.horse.name)
    domain = host.domain(pair.horse.name)
    assert domain.state == "migrated away"
    (check,) = (each for each in host.checks([domain]) if each.subject == domain.name)
    assert (check.name, check.status) == ("running", "warn")
    assert "migrated away" in check.message
    assert pair.horse.name not in [domain.name for domain in host.own_domains()]
    assert pair.backup(pair.there)["vda"][0] == "incremental"
    pair.come_back()


@pytest.mark.parametrize("undefine", [pytest.param(True, marks=pytest.mark.torture), False])
def test_what_a_killed_run_left_on_the_old_host_goes(
    pair: Pair, host: Host, work_dir: Path, undefine: bool, short_seal: None
) -> None:
    """Its files, and its record of the run, whether the old host knows the guest still or not."""
    shadow = Shadow(host, pair.horse)
    running = shadow.begin()
    pair.horse.domain.abortJob()   # somebody's, so that the guest can move
    die(running)
    left = [Path(path) for path in host.intents()[0].scratch]
    left[0].write_text("")
    pair.go(undefine=undefine)
    domain = host.intents()[0] if undefine else host.domain(pair.horse.name)
    (leftover,) = host.recover(domain, lambda _name: False)
    assert leftover.trouble == ()
    assert host.intents() == []
    assert not left[0].exists()
    if not undefine:
        old = pair.lab.connection.lookupByName(pair.horse.name)
        assert old.listAllCheckpoints() == []
    pair.come_back()


def die(running: LiveJob) -> None:
    """What a killed process leaves: the intent, and nobody at work."""
    running._watch.stop()
    running._connections.abort()
    running._lock.release()
