"""The lab itself: what the other tests rely on."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from tests.lab.disk import Disk, GiB, MiB, TiB
from tests.lab.domain import ImagesDifferError, Workhorse
from tests.lab.session import Lab

pytestmark = pytest.mark.real
MakeDomain = Callable[..., Workhorse]


def test_writes_are_seen_by_readers_and_comparisons(make_domain: MakeDomain) -> None:
    """Each kind of write reaches the image exactly, and a comparison notices a single byte."""
    horse = make_domain(Disk(size=16 * MiB))
    horse.write("vda", 0, 16 * MiB, 0xAB)
    before = horse.copy("vda")
    horse.compare("vda", before)
    horse.write_data("vda", 5 * MiB, b"\x01")
    with pytest.raises(ImagesDifferError):
        horse.compare("vda", before)
    horse.zero("vda", MiB, 65536)
    horse.zero_unmap("vda", 2 * MiB, 65536)
    horse.discard("vda", 3 * MiB, 65536)
    for offset in (MiB, 2 * MiB, 3 * MiB):
        assert horse.read_pattern("vda", offset, 65536, 0)
        assert horse.read_pattern("vda", offset + 65536, 65536, 0xAB)


def test_an_impossible_write_is_an_error(make_domain: MakeDomain) -> None:
    """A write beyond the disk's end does not pass in silence."""
    horse = make_domain(Disk(size=MiB))
    with pytest.raises(ValueError, match="beyond"):
        horse.write("vda", MiB, 512, 1)


def test_grown_and_plugged_disks(make_domain: MakeDomain) -> None:
    """A disk grows while the domain runs, and new disks of other kinds are writable at once."""
    horse = make_domain(Disk(size=MiB, cluster_size=4096), Disk("vdb", 4 * TiB), Disk("sda", MiB, bus="sata"))
    old = horse.copy("vda")
    horse.grow("vda", 2 * MiB)
    with pytest.raises(ImagesDifferError, match="size"):
        horse.compare("vda", old)
    horse.write("vda", MiB, MiB, 7)
    assert horse.read_pattern("vda", MiB, MiB, 7)
    horse.write("vdb", 4 * TiB - 65536, 65536, 8)
    horse.write("sda", 0, 512, 9)
    horse.attach(Disk("vdc", MiB, format="raw"))
    horse.write("vdc", 512, 512, 10)
    assert horse.read_pattern("vdc", 512, 512, 10)


def test_kill_and_start_again(make_domain: MakeDomain) -> None:
    """A killed QEMU is seen as stopped and can be started again."""
    horse = make_domain()
    horse.kill()
    assert not horse.running
    horse.start()
    assert horse.running


def test_fragments_reach_the_bitmap(make_domain: MakeDomain) -> None:
    """Alternating pieces, more than one block status reply holds, are dirty in the checkpoint's bitmap."""
    horse = make_domain(Disk(size=GiB, cluster_size=4096))
    horse.write("vda", 0, 64 * MiB, 1)
    horse.domain.checkpointCreateXML("<domaincheckpoint><name>lab</name></domaincheckpoint>", 0)
    horse.fragment("vda", 66000)
    assert horse.bitmaps("vda")["lab"]["count"] == 66000 * 4096
    assert horse.read_pattern("vda", 4096, 4096, 1)
    assert not horse.read_pattern("vda", 0, 4096, 1)


def test_removed_domains_leave_nothing(lab: Lab) -> None:
    """Checkpoints do not keep a domain from going, and no file stays."""
    horse = lab.workhorse()
    horse.domain.checkpointCreateXML("<domaincheckpoint><name>lab</name></domaincheckpoint>", 0)
    horse.write("vda", 0, 512, 1)
    left = lab.leftovers()
    assert any(horse.name in line for line in left)
    assert any("process" in line for line in left)
    horse.remove()
    horse.remove()
    assert not lab.leftovers()


def test_a_dead_run_is_swept_by_the_next(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Domains and files of a killed run go when the next lab opens; those of a living one stay."""
    living = lab.workhorse()
    dead = Lab()
    monkeypatch.setattr(dead, "connection", lab.connection)
    dead.folder.mkdir()
    (dead.folder / "lock").touch()
    dead.workhorse()
    with Lab() as following:
        assert living.running
        names = [domain.name() for domain in following.connection.listAllDomains()]
        assert not any(name.startswith(dead.prefix) for name in names)
        assert not dead.folder.exists()
    living.remove()
    shutil.rmtree(dead.folder, ignore_errors=True)
