"""The watch of a job is ended whenever the run is."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from vmbackup.errors import HypervisorError
from vmbackup.hypervisor.live.events import Event, EventHub
from vmbackup.hypervisor.live.watch import JobWatch


class Interrupted(BaseException):
    """Stands for a signal."""


def test_an_interrupt_before_its_thread_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cleaning up goes on: what comes after is the end of the job, and its scratch files."""
    connection: Any = SimpleNamespace(events=EventHub())
    info: Any = SimpleNamespace(uuid="u", name="guest")
    watch = JobWatch(connection, info, lambda: None)

    def interrupted(_thread: threading.Thread) -> None:
        raise Interrupted

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    scratch: Any = SimpleNamespace(first_threshold=lambda: 0, open=lambda: None, close=lambda: None)
    with pytest.raises(Interrupted):
        watch.start(scratch, {})
    watch.stop()


@pytest.mark.parametrize(("path", "lost"), [("", True), ("/images/vda.qcow2", True), ("/images/cd.iso", False)])
def test_whose_io_errors_end_the_run(path: str, lost: bool) -> None:
    """Those of the disks in the backup, which libvirt names or does not; not those of others."""
    connection: Any = SimpleNamespace(events=EventHub())
    info: Any = SimpleNamespace(uuid="u", name="guest")
    gave_up: list[bool] = []
    watch = JobWatch(connection, info, lambda: gave_up.append(True))
    scratch: Any = SimpleNamespace(
        open=lambda: None, close=lambda: None, first_threshold=lambda: 0, require_kept=lambda folder, then: None
    )
    watch.start(scratch, {}, ["/images/cd.iso"])
    for queue in connection.events._queues["u"]:
        queue.put(Event("io_error", detail=path, reason="message"))
    watch.stop()
    assert gave_up == [True] * lost
    if lost:
        with pytest.raises(HypervisorError, match="a disk of guest, or its scratch file, failed during the run"):
            watch.raise_if_lost()
