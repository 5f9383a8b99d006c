"""A limit on reading is kept by all who share it together, and costs nothing where there is none."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.unit.engine.kit import RamKit
from vmbackup.engine.pipeline.pace import Limit, Pacer
from vmbackup.errors import VmbackupError

MiB = 1 << 20
S = 1_000_000_000
BOOT, LATER_BOOT = b"boot-1", b"boot-2"


class Clock:
    def __init__(self) -> None:
        self.now = 1000 * S

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limit(tmp_path: Path) -> Limit:
    return Limit(tmp_path / "pace" / "nightly", MiB)


def pacer(limit: Limit, clock: Clock, boot: bytes = BOOT) -> Pacer:
    return Pacer(limit, clock, boot)


def test_claims_queue_up_whoever_makes_them(limit: Limit, clock: Clock) -> None:
    one, other = pacer(limit, clock), pacer(limit, clock)
    waits = [claimer.claim(MiB) for claimer in (one, other, one, one, other)]
    assert waits == pytest.approx([0.0, 0.8, 1.8, 2.8, 3.8])  # the first may make up for 0.2 s
    clock.now += 4 * S
    assert other.claim(MiB // 2) == pytest.approx(0.8)
    assert one.claim(MiB) == pytest.approx(1.3)


def test_what_was_not_used_is_lost_but_for_a_moment(limit: Limit, clock: Clock) -> None:
    one = pacer(limit, clock)
    one.claim(MiB)
    clock.now += 3600 * S
    assert [one.claim(MiB) for _ in range(3)] == pytest.approx([0.0, 0.8, 1.8])


def test_a_reboot_begins_anew(limit: Limit, clock: Clock) -> None:
    """The clock begins at 0 then: what the file says is of another time."""
    before = pacer(limit, clock)
    for _ in range(5):
        before.claim(MiB)
    clock.now = 10 * S
    assert pacer(limit, clock, LATER_BOOT).claim(MiB) == 0.0
    assert pacer(limit, clock, LATER_BOOT).claim(MiB) == pytest.approx(0.8)


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 44, BOOT.ljust(36) + (1 << 60).to_bytes(8, "big"), b"y" * 99])
def test_a_file_that_is_none_of_ours_counts_nothing(limit: Limit, clock: Clock, content: bytes) -> None:
    limit.path.parent.mkdir()
    limit.path.write_bytes(content)
    one = pacer(limit, clock)
    one.claim(MiB)
    assert pacer(limit, clock).claim(MiB) < 2


def test_a_low_limit_holds_too(tmp_path: Path, clock: Clock) -> None:
    slow = pacer(Limit(tmp_path / "pace", 1024), clock)
    assert [round(slow.claim(MiB)) for _ in range(3)] == [0, 1024, 2048]


def test_a_file_that_cannot_be_had_leaves_the_process_its_own_limit(
    limit: Limit, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmbackup.engine.pipeline.pace._LOCK_SECONDS", 0.05)
    one = pacer(limit, clock)
    one.claim(MiB)
    with limit.path.open("rb") as stopped:  # in the middle of a claim
        fcntl.flock(stopped, fcntl.LOCK_EX)
        assert [one.claim(MiB) for _ in range(2)] == pytest.approx([0.8, 1.8])
    (tmp_path / "file").touch()
    nowhere = pacer(Limit(tmp_path / "file" / "pace", MiB), clock)
    assert [nowhere.claim(MiB) for _ in range(3)] == pytest.approx([0.0, 0.8, 1.8])


def test_waiting_ends_when_the_run_does(limit: Limit) -> None:
    with Pacer(limit) as one:
        one.wait(0)
    with pytest.raises(VmbackupError):
        one.wait(3600)


def test_an_interrupt_does_not_wait_for_the_pace(kit: RamKit, limit: Limit) -> None:
    """Ctrl-C in the midst of a wait of hours."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            kit.backup(limit=Limit(limit.path, 100))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - started < 20
    kit.backup()


@pytest.fixture
def kit(tmp_path: Path) -> RamKit:
    made = RamKit(tmp_path, {"vda": 8 * MiB}, chunk_size=65536)
    made.disk().write(0, os.urandom(8 * MiB))
    return made


def test_small_reads_of_an_incremental_count_together(kit: RamKit, limit: Limit) -> None:
    """64 scattered chunks of 64 KiB are 4 MiB, read at 8 MiB a second."""
    kit.backup()
    for number in range(64):
        kit.disk().write(number * 131072 % (8 * MiB), b"new" + bytes([number]))
    reads: list[float] = []
    kit.host.on_read = lambda: reads.append(time.monotonic())
    point = kit.backup(limit=Limit(limit.path, 8 * MiB))
    assert point.disks[0].mode == "incremental"
    assert point.disks[0].read_bytes == 4 * MiB
    assert reads[-1] - reads[0] > 4 / 8 - 0.2 - 2 / 8  # but for the burst, and a claim of each worker


def _run(folder: Path, names: list[str], mib: int, rate: int) -> tuple[float, int]:
    """Backups side by side, each in a process: seconds from the first read to the last, and bytes."""
    script = "tests.unit.engine.reader_under_limit"
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", script, str(folder), name, str(mib), str(rate)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for name in names
    ]  # fmt: skip
    told: list[dict[str, Any]] = []
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        output, _ = process.communicate()
        assert process.returncode == 0
        told.append(json.loads(output))
    seconds = max(each["end"] for each in told) - min(each["first"] for each in told)
    return seconds, sum(each["bytes"] for each in told)


def test_two_processes_keep_to_the_rate_together(tmp_path: Path) -> None:
    """Within a tenth of it, where without a limit they are several times as fast."""
    seconds, size = _run(tmp_path, ["a", "b"], 24, 0)
    unlimited = size / seconds
    rate = min(8 * MiB, int(unlimited / 4))
    seconds, size = _run(tmp_path, ["c", "d"], 24, rate)
    assert size == 48 * MiB
    print(f"unlimited {unlimited / MiB:.1f} MiB/s, limit {rate / MiB:.1f}, kept {size / seconds / MiB:.2f}")
    assert 0.9 < size / seconds / rate < 1.1
