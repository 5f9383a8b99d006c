"""The process that thaws: what ends it, and what does not."""

import importlib.util
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmbackup.hypervisor.live import watchdog

UUID = "6695eb01-f6a4-8304-79aa-97f2502e193f"  # of the domain "test" of test:///default


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    if importlib.util.find_spec("libvirt") is None:
        pytest.skip("no libvirt module: make setup")
    command = [sys.executable, "-P", str(Path(watchdog.__file__)), "test:///default", UUID, "60"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout
        assert running.stdout.readline() == "ready\n"
        yield running
        running.kill()


def test_the_end_of_a_service_does_not_end_it(process: subprocess.Popen[str]) -> None:
    """systemd sends SIGTERM to all processes of a service; the guest may be frozen, and its run slow to thaw it."""
    assert process.stdin
    process.stdin.write("arm\n")
    process.stdin.flush()
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.stdin.write("done\n")
    process.stdin.flush()
    assert process.wait(60) == 0


def test_a_run_that_dies_before_the_freeze_ends_it(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.close()
    assert process.wait(60) == 0
