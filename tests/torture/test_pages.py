"""docs/first-day.md and docs/disaster-day.md, followed with a real Debian: every command of them, in their order."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import machine
from tests.lab.appliance import ApplianceError, kernel
from tests.lab.ceph import Ceph
from tests.lab.disk import same_content
from tests.lab.guest import Guest
from tests.lab.guest_image import GuestImage, GuestImageError, guest_image
from tests.lab.lost_host import LostHost
from tests.lab.pages import Follower
from tests.lab.session import Lab
from tests.lab.stage import Stage

pytestmark = [pytest.mark.torture, pytest.mark.real, pytest.mark.timeout(0)]

ORDERS = 220
KNOWN_FILES = """
for i in $(seq 100); do head -c 50000 /dev/urandom >/root/known-$i; done
find /root /etc -type f ! -name known.sha256 -exec sha256sum {} + >/root/known.sha256
sync
"""
CMDLINE = "root=/dev/vda rw console=ttyS0 net.ifnames=0 no_timer_check quiet"
IMAGE_URL = "https://cloud.debian.org/images/cloud/bookworm/latest/debian-12-generic-amd64.qcow2"
POWER_OFF = json.dumps(
    {"execute": "guest-exec", "arguments": {"path": "/bin/systemctl", "arg": ["--no-block", "poweroff"]}})


@pytest.fixture(scope="module")
def image() -> GuestImage:
    if shutil.which("virt-install") is None:
        pytest.skip("virt-install lacks: apt-get install --no-install-recommends virtinst")
    try:
        return guest_image()
    except GuestImageError as error:
        pytest.skip(f"no image of the guest: {error}")


@pytest.fixture(scope="module")
def first(lab: Lab, ceph: Ceph, image: GuestImage) -> Iterator[Follower]:
    """The page of the first day, at its beginning."""
    try:
        environment = kernel()   # for what looks into file systems
    except ApplianceError as error:
        pytest.skip(str(error))
    with Stage(lab, ceph, "first-day.md", ("web1",), environment) as stage:
        images = stage.folder / "images"
        for file in (image.kernel, image.initrd):
            shutil.copy(file, images)
        boot = f'--boot kernel={images}/{image.kernel.name},initrd={images}/{image.initrd.name},kernel_args="{CMDLINE}"'
        yield stage.follower({
            # this machine has them, and the program from this tree
            "apt install -y": "true apt install -y",
            "make install": "true make install",
            # no network: another image, with the agent in it, and without a boot loader
            "wget -qO": "true wget -qO",
            IMAGE_URL: f"&& cp --sparse=always {image.root} {images}/web1.qcow2",
            "virsh net-list --name | grep -qx default || virsh net-start default": "true",
            "--network network=default": "--network none",
            "--cloud-init user-data=web1.yaml": boot,
            "--memory 2048 --vcpus 2": f"--memory 384 --vcpus 1 --virt-type {'kvm' if machine.kvm_works() else 'qemu'}",
            "/var/lib/vmbackup/repository": f"{stage.folder}/repository",
            "/srv/files": f"{stage.folder}/files",
            # the image has no logind, which hears the button, nor can its agent shut down without
            "virsh shutdown web1": f"virsh qemu-agent-command {stage.names['web1']} '{POWER_OFF}'",
            "http://127.0.0.1:9847/": f"http://127.0.0.1:{stage.port}/",
            'domains = ["*"]': stage.domains,
        })


@pytest.fixture(scope="module")
def disaster(lab: Lab, ceph: Ceph, image: GuestImage) -> Iterator[Follower]:
    """The page of disaster day, at its beginning: `db1` and `web1`, which is a real guest, are in a bucket only."""
    with Stage(lab, ceph, "disaster-day.md", ("db1",)) as stage:
        host, guest = LostHost(stage, ceph), Guest(lab, image)
        stage.names["web1"] = guest.name
        guest.boot()
        guest.agent.run(KNOWN_FILES)
        horse = host.workhorse("db1")
        horse.copy("vda").rename(stage.folder / "db1.qcow2")
        host.backup(horse.name, guest.name)
        horse.remove()
        guest.remove()
        yield stage.follower({
            **host.exchanged(),
            "--network default": "",   # there is none here; nor has the guest an interface
        })


def _orders(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def _told(text: str) -> dict[str, str]:
    """sha256sum's output as name -> hash."""
    lines = (line.split("  ", 1) for line in text.splitlines())
    return {Path(path).name: digest for digest, path in lines}


class TestFirstDay:
    """Its parts build on each other: after a failure the rest fails too."""

    def test_two_backups(self, first: Follower) -> None:
        first.follow("1.", "2.", "3.", "4.")

    def test_files_come_back_and_the_disk_in_place(self, first: Follower) -> None:
        agent = first.agent_of(first.names["web1"])
        then = _told(agent.run("sha256sum /srv/shop/orders/*"))
        assert len(then) == ORDERS
        first.follow("5.")
        assert agent.run("find /srv/shop -type f") == ""
        first.follow("6.")
        assert _orders(first.folder / "files/orders") == then
        first.follow("7.")
        assert _told(agent.run("sha256sum /srv/shop/orders/*")) == then

    def test_a_copy_and_a_guest_that_runs_at_once(self, first: Follower) -> None:
        first.follow("8.", "9.")

    def test_a_drill_and_the_service(self, first: Follower) -> None:
        first.follow("10.", "11.")
        assert first.unused() == []


class TestDisasterDay:
    """Its parts build on each other: after a failure the rest fails too."""

    def test_the_first_guest_from_the_bucket_and_the_recovery_key(self, disaster: Follower) -> None:
        disaster.follow("1.", "2.", "3.", "4.")

    def test_the_guest_that_cannot_wait(self, disaster: Follower) -> None:
        disaster.follow("5.")

    def test_new_keys_and_backups_again(self, disaster: Follower) -> None:
        disaster.follow("6.", "7.")

    def test_without_libvirt_and_without_vmbackup(self, disaster: Follower) -> None:
        disaster.follow("9.")
        restored = disaster.folder / "srv" / disaster.names["db1"] / "vda.qcow2"
        assert same_content(disaster.folder / "db1.qcow2", restored) is None
        disaster.follow("10.", "11.")
        assert disaster.unused() == []
