"""The service for long: memory, threads and descriptors stay flat while guests are backed up all the time.

`make soak` (MINUTES, 20 unless told).
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.domain import Workhorse
from tests.lab.service import Service, make_service

pytestmark = [pytest.mark.torture, pytest.mark.timeout(0)]
MINUTES = float(os.environ.get("MINUTES", "20"))
WARM_UP = 0.25  # of the time: caches fill, histories of guests begin
RELOAD_EVERY = 20.0  # seconds
GROWTH = 1.05, 4 << 20  # of resident memory, between the first and the last third after the warm-up: noise of malloc


@dataclass(frozen=True)
class Sample:
    memory: int
    threads: int
    files: int


def sample(pid: int) -> Sample:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    files = len(os.listdir(f"/proc/{pid}/fd"))
    return Sample(int(status["VmRSS"].split()[0]) * 1024, int(status["Threads"]), files)


def work(service: Service, horses: list[Workhorse], seconds: float) -> list[Sample]:
    """Guests write, monitoring scrapes, the configuration is reloaded: for so long."""
    assert service.process is not None
    samples, reload_at, end = [], time.monotonic() + RELOAD_EVERY, time.monotonic() + seconds
    while time.monotonic() < end:
        for horse in horses:
            horse.write_data("vda", int.from_bytes(os.urandom(1), "big") << 16, os.urandom(65536))
        service.metrics()
        service.status()
        samples.append(sample(service.process.pid))
        if time.monotonic() > reload_at:
            reload_at += RELOAD_EVERY
            service.process.send_signal(signal.SIGHUP)
        time.sleep(1)
    return samples


def test_the_service_stays_as_small_as_it_began(make_domain: Callable[..., Workhorse], work_dir: Path) -> None:
    horses = [make_domain() for _ in range(3)]
    names = ", ".join(f'"{horse.name}"' for horse in horses)
    jobs = (
        f'[jobs.nightly]\ndomains = [{names}]\nschedule = "@every 5s"\nkeep = {{ last = 5 }}\n'
        '[repositories.local.prune]\nschedule = "@every 30s"\n'
        '[repositories.local.verify]\nschedule = "@every 40s"\n'
    )
    with make_service(work_dir, jobs, 'look_every = "10s"') as service:
        samples = work(service, horses, MINUTES * 60)
        totals = [guest["totals"]["runs"] for guest in service.status()["guests"]]
        assert service.stop() == 0
    third = int(len(samples) * (1 - WARM_UP)) // 3
    first, last = samples[-3 * third : -2 * third], samples[-third:]
    for name in ("memory", "threads", "files"):
        before, after = (statistics.median(getattr(s, name) for s in part) for part in (first, last))
        most = max(getattr(s, name) for s in samples)
        print(f"{name}: median {before:.0f} -> {after:.0f}, most {most}")
        room = before * GROWTH[0] + (GROWTH[1] if name == "memory" else 1)
        assert after <= room, name
    print("runs:", totals)
    assert all(runs.get("failed", 0) == 0 and runs.get("success", 0) > 0 for runs in totals)
