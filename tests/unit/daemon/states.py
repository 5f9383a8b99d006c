"""Snapshots for tests of what is made of them, and a service that gives them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from vmbackup.daemon.snapshot import (
    CopyState,
    DrillState,
    GuestState,
    LastRun,
    RepositoryState,
    RunState,
    Snapshot,
)
from vmbackup.daemon.work import Progress
from vmbackup.errors import ConfigError, NotFoundError

NOW = datetime(2026, 11, 28, 17, 0, tzinfo=UTC).timestamp()  # a Saturday
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
ERROR = "the scratch space is full: 200 MiB are free in /var/lib/libvirt/vmbackup, 4.00 GiB are needed"
HINT = "free some space there, or name another scratch_dir"


def last(status: str = "success", ago: float = 15 * HOUR, error: str | None = None, attempt: int = 1) -> LastRun:
    """A run that began `ago` seconds before NOW and took three minutes."""
    hint = HINT if error else None
    started = NOW - ago
    return LastRun("9f8e7d6c", status, "schedule", attempt, started, started + 185, error, hint, {"total": 185.0})


def guest(domain: str = "web01", ago: float = 15 * HOUR, max_age: float | None = 26 * HOUR, **more: Any) -> GuestState:
    """A guest whose newest restore point is `ago` seconds old; 0: it has none."""
    success = NOW - ago if ago else 0.0
    fields: dict[str, Any] = {"last_success": success, "max_age": max_age, "next_run": NOW + 9 * HOUR}
    fields |= {"last_run": last(ago=ago) if ago else None, "job": "nightly", "repository": "local"}
    if ago:
        fields |= {"last_point": "20261128T020000Z-1a2b3c4d", "point_times": (success, success - DAY)}
    return GuestState(domain=domain, **(fields | more))


def running(domain: str = "app01", **more: Any) -> RunState:
    """A backup that goes on."""
    progress = Progress(domain, 43 << 30, 100 << 30, 118.0 * (1 << 20))
    due = NOW - 600
    run = RunState("1a2b3c4d", "backup", "running", "local", "nightly", domain, None, "schedule", 1, due, due, due)
    return replace(run, **({"progress": progress} | more))


def queued(domain: str = "db01", **more: Any) -> RunState:
    """A backup that waits for its turn."""
    run = RunState("77aa88bb", "backup", "queued", "local", "nightly", domain, None, "schedule", 1, NOW - 60, NOW - 60)
    return replace(run, **more)


def store(name: str = "local", **more: Any) -> RepositoryState:
    """A repository that is up."""
    state = RepositoryState(
        name,
        f"file:///srv/{name}",
        up=True,
        looked=NOW - 60,
        bytes=1330 << 30,
        objects=41_000,
        points=1203,
        last_prune=NOW - 3 * HOUR,
        prune_max_age=26 * HOUR,
        next_prune=NOW + 21 * HOUR,
        last_verified=NOW - 2 * DAY,
        verify_max_age=8 * DAY,
        next_verify=NOW + 5 * DAY,
    )
    return replace(state, **more)


def snapshot(*guests: GuestState, **more: Any) -> Snapshot:
    """A healthy service with these guests."""
    state = Snapshot(
        NOW, NOW - 3 * DAY, "hv1", "running", "/etc/vmbackup/config.toml", NOW - 3 * DAY, libvirt_up=True, guests=guests
    )
    return replace(state, **({"repositories": (store(),)} | more))


def three() -> Snapshot:
    """One guest that breaks its promise and fails, one that is backed up now, one that is fine."""
    drill = DrillState(NOW - 3 * DAY, 15 * DAY, NOW + DAY, last(ago=3 * DAY))
    return snapshot(
        guest("app01", 23 * HOUR, running="1a2b3c4d", drill=drill),
        guest("db01", 15 * HOUR, queued=True, next_run=NOW - 60, drill=DrillState(0.0, 15 * DAY, NOW + DAY)),
        guest("web01", 31.2 * HOUR, last_run=last("failed", 14 * MINUTE, ERROR, 3)),
        runs=(running(), queued()),
        repositories=(store(), store("offsite", up=False, error="s3.example.org does not answer", bytes=None)),
        unprotected=("scratch-1",),
    )


def many(count: int = 300, seed: int = 1) -> Snapshot:
    """Many guests with a history each; a few of them in trouble."""
    chance = random.Random(seed)
    guests = []
    for number in range(count):
        ago = chance.uniform(2, 22) * HOUR
        run = last(ago=ago)
        if number % 50 == 7:
            ago, run = 40 * HOUR, last("failed", HOUR, ERROR)
        times = tuple(NOW - ago - day * DAY for day in range(60))
        copies = (CopyState("offsite", NOW - ago, 30 * HOUR, last(ago=ago)),)
        guests.append(guest(f"guest{number:03}", ago, last_run=run, point_times=times, copies=copies))
    return snapshot(*guests, runs=(running("guest000"), *(queued(f"guest{n:03}") for n in range(20, 60))))


@dataclass
class FakeService:
    """A service that shows what it was given, and remembers what it was asked."""

    shown: Snapshot = field(default_factory=three)
    history: list[dict[str, Any]] = field(default_factory=list)
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    bad_config: bool = False

    def snapshot(self) -> Snapshot:
        return self.shown

    def run_job(self, name: str, domains: Sequence[str], full: bool) -> list[str]:
        if name != "nightly":
            raise NotFoundError(f'there is no job "{name}"', 'did you mean "nightly"?')
        self.asked.append(("run", name, tuple(domains), full))
        return [f"{number:08x}" for number in range(len(domains) or 3)]

    def cancel(self, run_id: str) -> None:
        self.asked.append(("cancel", run_id))

    def reload(self) -> None:
        if self.bad_config:
            raise ConfigError("/etc/vmbackup/config.toml:3: unknown key", "take it out")
        self.asked.append(("reload",))

    def recent(self, limit: int, domain: str | None) -> list[dict[str, Any]]:
        self.asked.append(("recent", limit, domain))
        return [run for run in self.history if domain in (None, run["domain"])][:limit]
