"""Scratch on storage that fails in the middle of a run: the run fails, the guest goes on, and the next run is right."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import libvirt_qemu
import pytest

from tests.lab.bad_storage import BadStorage
from tests.lab.session import Lab
from tests.real.engine.meddler import MIB, BusyGuest
from tests.real.hypervisor.conftest import Shadow, open_host
from tests.real.hypervisor.test_scratch import wait_for_loss
from vmbackup.errors import HypervisorError
from vmbackup.hypervisor import Host

pytestmark = [pytest.mark.real, pytest.mark.versions]
_RUNNING = 1


@pytest.fixture
def storage(lab: Lab, scratch_dir: Path) -> Iterator[BadStorage]:
    with BadStorage(lab, scratch_dir) as made:
        yield made


@pytest.fixture
def guest(lab: Lab, storage: BadStorage) -> Iterator[BusyGuest]:
    """Started after the mount, which its QEMU would not see else."""
    made = BusyGuest(lab)
    yield made
    made.remove()


@pytest.fixture
def shadow(host: Host, guest: BusyGuest, short_seal: None) -> Shadow:
    """With a restore point, from which the next run is incremental."""
    made = Shadow(host, guest)  # type: ignore[arg-type]
    made.run()
    return made


def bitmaps(guest: BusyGuest) -> set[str]:
    """All that QEMU has on any node."""
    query = '{"execute": "query-named-block-nodes", "arguments": {"flat": true}}'
    nodes = json.loads(libvirt_qemu.qemuMonitorCommand(guest.domain, query, 0))["return"]
    return {bitmap["name"] for node in nodes for bitmap in node.get("dirty-bitmaps", [])}


def check_that_all_is_as_before(
    lab: Lab, shadow: Shadow, guest: BusyGuest, storage: BadStorage, work_dir: Path
) -> None:
    """The guest runs and writes, and nothing of the run is left on it; the next one, with scratch elsewhere, is right.

    Once the storage is gone nothing tells of the failed run any more.
    """
    assert shadow.anchor
    assert guest.state[0] == _RUNNING
    assert guest.domain.jobInfo()[0] == 0
    assert guest.checkpoints() == [shadow.anchor.checkpoint]
    assert bitmaps(guest) == {shadow.anchor.checkpoint}
    guest.ask(32)
    guest.settle()
    elsewhere = lab.new_folder("scratch")
    with open_host(lab, elsewhere, work_dir / "state") as shadow.host:
        shadow.run()
        storage.close()
        shadow.host.recover(shadow.host.domain(guest.name), lambda name: str(name) in shadow.committed)
    assert shadow.modes == {"vda": "incremental"}
    assert bytes(shadow.images["vda"]) == guest.copy().read_bytes()
    elsewhere.rmdir()


def test_an_error_that_the_guest_is_given(
    lab: Lab, shadow: Shadow, storage: BadStorage, guest: BusyGuest, work_dir: Path
) -> None:
    """So QEMU tells of it. The run is ended at the first, so that there are few."""
    told = f"a disk of {guest.name}, or its scratch file, failed during the run, and the guest was given I/O errors"
    with shadow.begin() as running:
        guest.ask(2)
        guest.settle()
        storage.shut_down()
        guest.write(3)
        assert guest.answer(60) == "e"
        with pytest.raises(HypervisorError, match=told):
            wait_for_loss(running)
    check_that_all_is_as_before(lab, shadow, guest, storage, work_dir)


def test_writes_that_are_lost_and_nobody_is_told(
    lab: Lab, shadow: Shadow, storage: BadStorage, guest: BusyGuest, work_dir: Path
) -> None:
    """The page cache took them, the device does not: what is then read for the backup is wrong, with no error."""
    before = guest.copy().read_bytes()
    with shadow.begin(full=True) as running:
        storage.sync()
        for mebibyte in range(2, 32):
            guest.ask(mebibyte)
            guest.settle()
            if mebibyte % 3 == 0 and storage.lose():  # else somebody has synced it meanwhile
                break
        images = shadow.read(running)
        assert images["vda"][2 * MIB :] != before[2 * MIB :], "nothing was lost, so nothing is shown here"
        with pytest.raises(HypervisorError, match=f"the storage of {storage.folder} failed"):
            running.seal()
        with pytest.raises(HypervisorError, match="scratch files are lost"):
            running.check()
    check_that_all_is_as_before(lab, shadow, guest, storage, work_dir)
