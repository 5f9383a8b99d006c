"""The clockwork: what is called when, whatever the clock, the calls and the configuration do."""

import threading
import time
from datetime import UTC

from vmbackup.daemon.clockwork import Clockwork, Entry


def test_calls_come_when_they_are_due() -> None:
    """By real clocks and threads, each with the time it was due."""
    calls: list[float] = []
    enough = threading.Event()

    def call(due: float) -> None:
        calls.append(due)
        assert 0 <= time.time() - due < 0.9
        if len(calls) == 2:
            enough.set()

    clockwork = Clockwork()
    clockwork.set({"a": Entry("@every 1s", UTC, call)})
    clockwork.start()
    assert enough.wait(20)
    assert clockwork.shutdown(within=5)
    assert calls[1] == calls[0] + 1
    assert calls[0] % 1 == 0
