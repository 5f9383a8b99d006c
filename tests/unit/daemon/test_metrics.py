"""The metrics: every name of the contract, every series from the first scrape on, and text that Prometheus takes."""

from __future__ import annotations

import math
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.unit.daemon.states import DAY, HOUR, NOW, guest, last, many, running, snapshot, store, three
from vmbackup import __version__
from vmbackup.daemon import series
from vmbackup.daemon.metrics import exposition, verified_exposition, write_textfile
from vmbackup.daemon.reasons import REASONS
from vmbackup.daemon.snapshot import CopyState, DrillState, LastRun, Snapshot, Totals
from vmbackup.daemon.work import Skip, Status
from vmbackup.engine.care.findings import Damage
from vmbackup.engine.care.verified import Verified
from vmbackup.errors import TargetError

GUEST = {"domain", "job_name", "repository"}
CONTRACT = {
    "vmbackup_build_info": {"version"},
    "vmbackup_domain_protected": {"domain"},
    "vmbackup_last_success_timestamp_seconds": GUEST,
    "vmbackup_max_age_seconds": GUEST,
    "vmbackup_last_run_timestamp_seconds": GUEST,
    "vmbackup_last_run_status": {*GUEST, "status"},
    "vmbackup_last_run_duration_seconds": {*GUEST, "stage"},
    "vmbackup_next_run_timestamp_seconds": GUEST,
    "vmbackup_runs_total": {*GUEST, "status"},
    "vmbackup_runs_skipped_total": {*GUEST, "reason"},
    "vmbackup_read_bytes_total": GUEST,
    "vmbackup_changed_bytes_total": GUEST,
    "vmbackup_stored_bytes_total": GUEST,
    "vmbackup_full_read_total": {*GUEST, "reason"},
    "vmbackup_guest_freeze_seconds": GUEST,
    "vmbackup_quiesce_ok": GUEST,
    "vmbackup_last_verified_timestamp_seconds": GUEST,
    "vmbackup_last_drill_success_timestamp_seconds": GUEST,
    "vmbackup_last_drill_failed": GUEST,
    "vmbackup_repository_up": {"repository"},
    "vmbackup_repository_bytes": {"repository"},
    "vmbackup_repository_objects": {"repository"},
    "vmbackup_repository_damaged_objects": {"repository"},
    "vmbackup_last_prune_timestamp_seconds": {"repository"},
    "vmbackup_scratch_bytes": set(),
    "vmbackup_config_last_reload_successful": set(),
}
"""What scripts, alerts and acceptance runs rely on."""

Found = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parsed(text: bytes) -> Found:
    found: Found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, "a series twice"
            found[key] = sample.value
    return found


def value(found: Found, name: str, **labels: str) -> float:
    return found[f"vmbackup_{name}", tuple(sorted(labels.items()))]


def of(found: Found, name: str, label: str) -> dict[str, float]:
    """Values of one metric by one of its labels."""
    return {dict(labels)[label]: number for (told, labels), number in found.items() if told == f"vmbackup_{name}"}


WEB = {"domain": "web01", "job_name": "nightly", "repository": "local"}
NEW = snapshot(guest("web01", 0), repositories=(store(bytes=None, objects=None, last_prune=0.0, last_verified=0.0),))


@pytest.mark.parametrize("name", CONTRACT)
@pytest.mark.parametrize("shown", [NEW, three()], ids=["before the first run", "later"])
def test_the_contract(shown: Snapshot, name: str) -> None:
    """Each name is there with exactly its labels, for a guest that was never backed up too."""
    labels = [{name for name, _ in labels} for told, labels in parsed(exposition(shown)) if told == name]
    assert labels
    assert all(found == CONTRACT[name] for found in labels)


def test_the_first_scrape_has_every_series() -> None:
    """A rate over a series that begins with its first event would miss that event."""
    before = snapshot(guest("web01", 0, copies=(CopyState("offsite", max_age=DAY),), drill=DrillState()))
    totals = Totals(dict.fromkeys(Status, 1), dict.fromkeys(Skip, 2), 3, 2, 1, dict.fromkeys(REASONS, 1))
    stages = {"total": 1.0, "freeze": 0.1, "seal": 0.2}
    after = snapshot(
        guest(
            "web01",
            copies=(CopyState("offsite", NOW, DAY, last()),),
            drill=DrillState(NOW, DAY, NOW, last()),
            totals=totals,
            last_run=replace(last("failed"), stages=stages),
            last_verified=NOW,
            running="1",
        ),
        runs=(running(),),
    )
    assert parsed(exposition(before)).keys() == parsed(exposition(after)).keys()


def test_what_never_happened_is_0() -> None:
    """Every value of a new guest but its promise and its next run."""
    found = parsed(exposition(NEW))
    told = {name for (name, labels), number in found.items() if ("domain", "web01") in labels and number != 0}
    assert told == {
        "vmbackup_domain_protected",
        "vmbackup_domain_present",
        "vmbackup_max_age_seconds",
        "vmbackup_next_run_timestamp_seconds",
    }


def test_a_service_without_guests_names_all_metrics() -> None:
    text = exposition(snapshot(repositories=())).decode()
    for metric in series.ALL:
        name = metric.name
        assert f"# HELP {name} {metric.help}\n# TYPE {name} {metric.kind}\n" in text


def test_values_of_a_guest() -> None:
    totals = Totals({"success": 5, "failed": 1}, {"still_running": 2}, 30, 20, 10, {"full": 1, "bitmap_broken": 2})
    found = parsed(
        exposition(
            snapshot(
                guest(
                    last_run=replace(last(ago=HOUR), stages={"total": 185.0, "seal": 0.5}),
                    freeze_seconds=0.05,
                    quiesce_ok=True,
                    known_since=NOW - 9 * DAY,
                    last_verified=NOW - DAY,
                    totals=totals,
                    drill=DrillState(NOW - 2 * DAY, 15 * DAY),
                    copies=(CopyState("offsite", NOW - 3 * HOUR, 30 * HOUR), CopyState("third")),
                )
            )
        )
    )
    assert value(found, "last_success_timestamp_seconds", **WEB) == NOW - 15 * HOUR
    assert value(found, "max_age_seconds", **WEB) == 26 * 3600
    assert value(found, "last_run_timestamp_seconds", **WEB) == NOW - HOUR + 185
    assert of(found, "last_run_duration_seconds", "stage") == {"total": 185.0, "seal": 0.5, "freeze": 0.0}
    assert value(found, "next_run_timestamp_seconds", **WEB) == NOW + 9 * HOUR
    assert of(found, "runs_total", "status") == {"success": 5, "failed": 1, "warning": 0, "cancelled": 0}
    assert of(found, "runs_skipped_total", "reason") == dict.fromkeys(Skip, 0) | {"still_running": 2}
    sizes = [value(found, f"{name}_bytes_total", **WEB) for name in ("read", "changed", "stored")]
    assert sizes == [30, 20, 10]
    assert of(found, "full_read_total", "reason") == dict.fromkeys(REASONS, 0) | {"full": 1, "bitmap_broken": 2}
    assert value(found, "guest_freeze_seconds", **WEB) == 0.05
    assert value(found, "quiesce_ok", **WEB) == 1
    assert value(found, "known_since_timestamp_seconds", **WEB) == NOW - 9 * DAY
    assert value(found, "last_verified_timestamp_seconds", **WEB) == NOW - DAY
    assert value(found, "last_drill_success_timestamp_seconds", **WEB) == NOW - 2 * DAY
    assert value(found, "drill_max_age_seconds", **WEB) == 15 * DAY
    assert of(found, "last_copy_timestamp_seconds", "target") == {"offsite": NOW - 3 * HOUR, "third": 0}
    assert of(found, "copy_max_age_seconds", "target") == {"offsite": 30 * HOUR, "third": 0}


STATUSES = [
    (None, None, [], False),
    (last(), None, ["success"], False),
    (last("warning"), None, ["warning"], False),
    (last("failed"), None, ["failed"], True),
    (last("cancelled"), None, ["cancelled"], False),
    (last("failed"), "1a2b", ["running"], True),
    (None, "1a2b", ["running"], False),
]


@pytest.mark.parametrize(("run", "goes_on", "hot", "failed"), STATUSES)
def test_the_last_status_is_one_of_them(run: object, goes_on: str | None, hot: list[str], failed: bool) -> None:
    """Exactly one is 1, and none before the first run; a failure stays told while the next run goes on."""
    found = parsed(exposition(snapshot(guest(last_run=run, running=goes_on))))
    told = of(found, "last_run_status", "status")
    assert set(told) == {"success", "warning", "failed", "cancelled", "running"}
    assert [status for status, number in told.items() if number] == hot
    assert value(found, "last_run_failed", **WEB) == failed


@pytest.mark.parametrize(
    ("run", "failed"),
    [(None, False), (last(), False), (last("failed"), True), (last("cancelled"), False)],
)
def test_a_drill_that_failed_is_told_before_it_is_late(run: LastRun | None, failed: bool) -> None:
    """Also where no age is promised, and where none is configured any more."""
    found = parsed(exposition(snapshot(guest(drill=DrillState(NOW - DAY, None, NOW + DAY, run)))))
    assert value(found, "last_drill_failed", **WEB) == failed
    assert value(parsed(exposition(snapshot(guest()))), "last_drill_failed", **WEB) == 0


def test_protection_is_told_of_all_domains_that_libvirt_knows() -> None:
    """Once a domain, whatever its jobs; a job that only runs by hand protects nothing."""
    shown = snapshot(
        guest("web01"),
        guest("web01", job="weekly", repository="offsite"),
        guest("by-hand"),
        guest("gone", present=False),
        unprotected=("by-hand", "scratch-1"),
    )
    found = parsed(exposition(shown))
    assert of(found, "domain_protected", "domain") == {"web01": 1, "by-hand": 0, "scratch-1": 0}
    assert of(found, "domain_present", "domain") == {"web01": 1, "by-hand": 1, "gone": 0}


def test_a_vanished_guest_keeps_its_series() -> None:
    """Its age is told on: whoever deleted it by mistake needs it."""
    found = parsed(exposition(snapshot(guest(present=False))))
    assert value(found, "last_success_timestamp_seconds", **WEB) == NOW - 15 * HOUR


def test_repositories() -> None:
    stores = (store(damaged_objects=2), store("offsite", up=False, bytes=None, objects=None, verify_max_age=None))
    found = parsed(exposition(snapshot(repositories=stores)))
    assert of(found, "repository_up", "repository") == {"local": 1, "offsite": 0}
    assert value(found, "repository_bytes", repository="local") == 1330 << 30
    assert math.isnan(value(found, "repository_bytes", repository="offsite"))
    assert math.isnan(value(found, "repository_objects", repository="offsite"))
    assert of(found, "repository_damaged_objects", "repository") == {"local": 2, "offsite": 0}
    assert value(found, "last_prune_timestamp_seconds", repository="local") == NOW - 3 * HOUR
    assert of(found, "verify_max_age_seconds", "repository") == {"local": 8 * DAY, "offsite": 0}
    assert value(found, "repository_last_verified_timestamp_seconds", repository="local") == NOW - 2 * DAY
    assert value(found, "repository_points", repository="local") == 1203


def test_the_service() -> None:
    found = parsed(exposition(replace(three(), config_ok=False, libvirt_up=False, scratch_bytes=4096)))
    assert value(found, "build_info", version=__version__) == 1
    assert value(found, "config_last_reload_successful") == 0
    assert value(found, "libvirt_up") == 0
    assert value(found, "scratch_bytes") == 4096
    assert value(found, "start_timestamp_seconds") == NOW - 3 * DAY
    assert value(found, "runs_active", kind="backup", state="running") == 1
    assert value(found, "runs_active", kind="backup", state="queued") == 1


@pytest.mark.parametrize("name", ['a"b', "a\\", "a\nb 7\nvmbackup_libvirt_up 0", "naïve-虚拟机", "{}", "", "\ud800"])
def test_hostile_names(name: str) -> None:
    """They come out as they went in, and make no line of their own."""
    found = parsed(exposition(snapshot(guest(name), unprotected=(f"x{name}",))))
    expected = {name, f"x{name}"} if name != "\ud800" else {"\\ud800", "x\\ud800"}
    assert set(of(found, "domain_protected", "domain")) == expected
    assert value(found, "libvirt_up") == 1


@pytest.mark.parametrize("shown", [NEW, three(), many(30), snapshot(repositories=())])
def test_promtool_has_nothing_to_say(shown: Snapshot) -> None:
    """Names, units, HELP and TYPE are as Prometheus wants them."""
    if not (promtool := shutil.which("promtool")):
        pytest.skip("promtool is missing: apt-get install prometheus")
    done = subprocess.run([promtool, "check", "metrics"], input=exposition(shown), capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_both_expositions_agree() -> None:
    """node_exporter refuses files that explain one name in two ways."""
    kept = Verified("00", datetime.fromtimestamp(NOW, UTC), domains=("web01",), damaged=(Damage("x", "y", (), ()),))
    text = verified_exposition("local", kept, {"web01": "nightly"})
    ours = exposition(snapshot(guest(last_verified=NOW), repositories=(store(damaged_objects=1),)))
    assert set(text.splitlines()) <= set(ours.splitlines())
    assert value(parsed(text), "last_verified_timestamp_seconds", **WEB) == NOW


def test_the_textfile(tmp_path: Path) -> None:
    """Readable by node_exporter, replaced whole, with nothing left beside it; a missing folder is told."""
    file = tmp_path / "vmbackup.prom"
    for text in (b"one 1\n", exposition(three())):
        write_textfile(file, text)
        assert file.read_bytes() == text
        assert file.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(TargetError, match="cannot write"):
        write_textfile(tmp_path / "none" / "x.prom", b"")
