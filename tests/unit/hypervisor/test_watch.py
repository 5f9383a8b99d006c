"""The watch of a job is ended whenever the run is."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from vmbackup.hypervisor.live.events import EventHub
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
    scratch: Any = SimpleNamespace(first_threshold=lambda: 0)
    with pytest.raises(Interrupted):
        watch.start(scratch, {})
    watch.stop()
