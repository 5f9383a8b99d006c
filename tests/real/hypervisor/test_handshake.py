"""Connections in the making while the job ends: QEMU must never wait for a client that it has greeted.

QEMU 7.2.14 and later of 7.2 stand still for good, the guest too, where their NBD server is stopped while a client in
the handshake has yet to speak; so a failure here is a domain that nobody can reach any more.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.disk import Disk, MiB
from tests.lab.domain import Workhorse
from tests.lab.session import Lab
from tests.real.engine.kit import Kit, kits
from tests.real.hypervisor.conftest import Shadow
from vmbackup.errors import HypervisorError
from vmbackup.hypervisor.live import readers
from vmbackup.hypervisor.live.begin import Beginner
from vmbackup.hypervisor.live.job import LiveJob
from vmbackup.hypervisor.tidy import cleanup
from vmbackup.nbd import NbdClient, client

pytestmark = [pytest.mark.real, pytest.mark.versions]
_TIMEOUT = 20.0  # seconds


class Held:
    """A reader that is opened by a thread, and stands still from the moment it has connected until `go`."""

    def __init__(self, job: LiveJob, patch: pytest.MonkeyPatch) -> None:
        self._job = job
        self._connected, self._go = threading.Event(), threading.Event()
        negotiate = client.negotiate

        def held(*args: Any, **options: Any) -> Any:
            self._connected.set()
            assert self._go.wait(4 * _TIMEOUT)
            return negotiate(*args, **options)

        patch.setattr(client, "negotiate", held)
        self._thread = threading.Thread(target=self._open)
        self._thread.start()
        assert self._connected.wait(_TIMEOUT)

    def _open(self) -> None:
        with contextlib.suppress(HypervisorError):
            self._job.disks[0].open_reader()

    def go(self) -> None:
        self._go.set()
        self._thread.join()


@pytest.fixture
def running(make_domain: Callable[..., Workhorse], make_shadow: Callable[..., Shadow]) -> Iterator[LiveJob]:
    """A run of a domain, which then is as before: no job, no new checkpoint, the next run right."""
    horse = make_domain(Disk(size=MiB))
    shadow = make_shadow(horse)
    shadow.run()
    before = horse.checkpoints()
    with shadow.begin(readers=0) as job:
        yield job
    assert horse.domain.jobInfo()[0] == 0
    assert horse.checkpoints() == before
    shadow.run()
    assert shadow.modes == {"vda": "incremental"}


def test_a_foreign_abort_does_not_wait_for_our_handshake(
    running: LiveJob, monkeypatch: pytest.MonkeyPatch, lab: Lab
) -> None:
    """A reader that has just connected, and takes no answers: the job ends all the same."""
    held = Held(running, monkeypatch)
    try:
        domain = lab.connection.lookupByName(running.domain.name)
        domain.abortJob()
        deadline = time.monotonic() + _TIMEOUT
        while domain.jobInfo()[0] != 0:
            assert time.monotonic() < deadline, "QEMU stands still"
            time.sleep(0.02)
    finally:
        held.go()


def test_giving_up_waits_for_a_handshake(running: LiveJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch ends the job while another thread opens a reader: after the handshake, not in its midst."""

    class InTurns:
        """Speaks only when it was answered, as QEMU hangs for: the worst that a busy machine can make of ours."""

        @staticmethod
        def connect(*args: Any, **options: Any) -> NbdClient:
            return NbdClient.connect(*args, **(options | {"at_once": False}))

    aborted, abort_job = threading.Event(), cleanup.abort_job

    def aborting(domain: Any, socket: str) -> bool:
        aborted.set()
        return abort_job(domain, socket)

    monkeypatch.setattr(readers, "NbdClient", InTurns)
    monkeypatch.setattr(cleanup, "abort_job", aborting)
    held = Held(running, monkeypatch)
    giving_up = threading.Thread(target=running.give_up)
    giving_up.start()
    early = aborted.wait(1)
    held.go()
    giving_up.join()
    assert aborted.is_set()
    assert not early
    with pytest.raises(HypervisorError, match="over"):
        running.disks[0].open_reader()


@pytest.fixture
def kit(lab: Lab, work_dir: Path, scratch_dir: Path) -> Iterator[Kit]:
    yield from kits(work_dir, scratch_dir, uri=lab.uri, domain_folders=lab.domain_folders)


def test_a_run_connects_while_it_begins(
    kit: Kit, make_domain: Callable[..., Workhorse], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full and an incremental of two disks: no connection is made once the job is handed over."""
    horse = make_domain(Disk(size=4 * MiB), Disk("vdb", size=MiB))
    begin = Beginner.begin

    def begun(*args: Any) -> LiveJob:
        job = begin(*args)
        patch.setattr(readers, "NbdClient", None)
        return job

    for pattern in (1, 2):
        horse.write("vda", 0, 2 * MiB, pattern)
        horse.write("vdb", 65536, 65536, pattern)
        with monkeypatch.context() as patch:
            patch.setattr(Beginner, "begin", begun)
            kit.backup(horse)


def test_many_disks_do_not_use_up_the_connections_that_qemu_takes(
    make_domain: Callable[..., Workhorse], make_shadow: Callable[..., Shadow]
) -> None:
    """100 at a time: what no reader needs any more is kept only as long as there is room."""
    shadow = make_shadow(make_domain(*(Disk(f"vd{letter}", size=MiB) for letter in "abcdef")))
    shadow.run(readers=20)
