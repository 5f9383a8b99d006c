"""The metrics of the service, made of a snapshot: right from the first scrape on, and in each the same series."""

import math
from collections.abc import Mapping
from pathlib import Path

from vmbackup import __version__
from vmbackup.daemon import series as s
from vmbackup.daemon.exposition import Values
from vmbackup.daemon.reasons import REASONS
from vmbackup.daemon.snapshot import CopyState, DrillState, GuestState, RepositoryState, Snapshot, Totals
from vmbackup.daemon.work import Kind, Skip, Status
from vmbackup.engine.care.verified import Verified, write_atomically

RUNNING = "running"  # vmbackup_last_run_status, beside Status
STAGES = ("total", "freeze", "seal")
_STATES = (RUNNING, "queued")


def exposition(snapshot: Snapshot) -> bytes:
    """The Prometheus text format of all that is known."""
    values = Values()
    values.show(*s.ALL)
    _service(values, snapshot)
    for guest in snapshot.guests:
        _guest(values, guest)
    for repository in snapshot.repositories:
        _repository(values, repository)
    return values.text()


def verified_exposition(name: str, kept: Verified, jobs: Mapping[str, str]) -> bytes:
    """The same of what a verification of repository `name` found; `jobs`: domain -> the job that backs it up."""
    values = Values()
    values.show(s.VERIFIED)
    time = kept.time.timestamp() if kept.time else 0.0
    for domain in kept.domains:
        values.set(s.VERIFIED, (domain, jobs.get(domain, ""), name), time)
    values.set(s.DAMAGED, (name,), len(kept.damaged))
    return values.text()


def write_textfile(path: Path, text: bytes) -> None:
    """Writes it for node_exporter, which never sees half of it and may read it. Raises TargetError."""
    write_atomically(path, text.decode(), mode=0o644)


def _service(values: Values, snapshot: Snapshot) -> None:
    values.set(s.BUILD_INFO, (__version__,), 1)
    values.set(s.START, (), snapshot.started)
    values.set(s.CONFIG_RELOADED, (), snapshot.config_ok)
    values.set(s.LIBVIRT_UP, (), snapshot.libvirt_up)
    values.set(s.SCRATCH_BYTES, (), snapshot.scratch_bytes)
    for kind in Kind:
        for state in _STATES:
            number = sum(run.kind == kind and (run.state == "queued") == (state == "queued") for run in snapshot.runs)
            values.set(s.RUNS_ACTIVE, (kind, state), number)
    for guest in snapshot.guests:
        if guest.present:
            values.set(s.PROTECTED, (guest.domain,), 1)
    for domain in snapshot.unprotected:
        values.set(s.PROTECTED, (domain,), 0)


def _guest(values: Values, guest: GuestState) -> None:
    labels = (guest.domain, guest.job, guest.repository)
    drill = guest.drill or DrillState()
    values.set(s.PRESENT, labels, guest.present)
    values.set(s.KNOWN_SINCE, labels, guest.known_since)
    values.set(s.LAST_SUCCESS, labels, guest.last_success)
    values.set(s.MAX_AGE, labels, guest.max_age or 0)
    values.set(s.NEXT_RUN, labels, guest.next_run)
    values.set(s.FREEZE, labels, guest.freeze_seconds)
    values.set(s.QUIESCE_OK, labels, guest.quiesce_ok)
    values.set(s.VERIFIED, labels, guest.last_verified)
    values.set(s.DRILLED, labels, drill.last_success)
    failed = drill.last_run is not None and drill.last_run.status == Status.FAILED
    values.set(s.DRILL_FAILED, labels, failed)
    values.set(s.DRILL_MAX_AGE, labels, drill.max_age or 0)
    _last_run(values, labels, guest)
    _totals(values, labels, guest.totals)
    for copy in guest.copies:
        _copy(values, labels, copy)


def _last_run(values: Values, labels: tuple[str, ...], guest: GuestState) -> None:
    last = guest.last_run
    status = RUNNING if guest.running else last.status if last else None
    for name in (*Status, RUNNING):
        values.set(s.LAST_STATUS, (*labels, name), name == status)
    values.set(s.LAST_FAILED, labels, last is not None and last.status == Status.FAILED)
    values.set(s.LAST_RUN, labels, last.finished if last else 0)
    stages = last.stages if last else {}
    for stage in (*STAGES, *(name for name in stages if name not in STAGES)):
        values.set(s.LAST_DURATION, (*labels, stage), stages.get(stage, 0))


def _totals(values: Values, labels: tuple[str, ...], totals: Totals) -> None:
    values.set(s.READ_BYTES, labels, totals.read_bytes)
    values.set(s.CHANGED_BYTES, labels, totals.changed_bytes)
    values.set(s.STORED_BYTES, labels, totals.stored_bytes)
    for series, names, counts in (
        (s.RUNS, Status, totals.runs),
        (s.SKIPPED, Skip, totals.skipped),
        (s.FULL_READ, REASONS, totals.full_reads),
    ):
        for name in dict.fromkeys((*names, *counts)):
            values.set(series, (*labels, name), counts.get(name, 0))


def _copy(values: Values, labels: tuple[str, ...], copy: CopyState) -> None:
    values.set(s.LAST_COPY, (*labels, copy.repository), copy.last)
    values.set(s.COPY_MAX_AGE, (*labels, copy.repository), copy.max_age or 0)


def _repository(values: Values, repository: RepositoryState) -> None:
    labels = (repository.name,)
    values.set(s.UP, labels, repository.up)
    values.set(s.REPOSITORY_KNOWN_SINCE, labels, repository.known_since)
    values.set(s.REPOSITORY_BYTES, labels, _known(repository.bytes))
    values.set(s.REPOSITORY_OBJECTS, labels, _known(repository.objects))
    values.set(s.POINTS, labels, repository.points)
    values.set(s.DAMAGED, labels, repository.damaged_objects)
    values.set(s.PRUNED, labels, repository.last_prune)
    values.set(s.PRUNE_MAX_AGE, labels, repository.prune_max_age or 0)
    values.set(s.REPOSITORY_VERIFIED, labels, repository.last_verified)
    values.set(s.VERIFY_MAX_AGE, labels, repository.verify_max_age or 0)


def _known(value: int | None) -> float:
    """A repository whose size nobody has counted is not empty."""
    return math.nan if value is None else value
