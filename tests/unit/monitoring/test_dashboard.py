"""The Grafana dashboard and the examples: every query is PromQL over metrics and labels that the service has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.monitoring.dashboard import DASHBOARD, PANELS, queries
from tests.unit.project.tree import ROOT
from vmbackup.daemon import series

METRICS = {metric.name: {*metric.labels, "instance", "job"} for metric in series.ALL}
QUERIES = queries()
NOT_SHOWN = {"vmbackup_build_info", "vmbackup_start_timestamp_seconds", "vmbackup_domain_present",
             "vmbackup_known_since_timestamp_seconds", "vmbackup_repository_known_since_timestamp_seconds",
             "vmbackup_last_run_timestamp_seconds", "vmbackup_last_run_status"}  # fmt: skip


@pytest.mark.parametrize("name", QUERIES)
def test_metrics_and_labels_exist(name: str) -> None:
    """Those of selectors too: a label that nothing has matches everything, or nothing."""
    expression, legend = QUERIES[name]
    used = re.findall(r"(vmbackup_\w+)(?:\{([^}]*)\})?", expression)
    assert used
    for metric, selector in used:
        assert metric in METRICS
        assert set(re.findall(r"(\w+)=", selector)) <= METRICS[metric]
    grouped = {word for words in re.findall(r"by \(([^)]*)\)", expression) for word in re.findall(r"\w+", words)}
    known = set.union(*(METRICS[metric] for metric, _ in used))
    assert grouped <= known
    assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= (grouped or known)


def test_variables_ask_for_what_exists() -> None:
    for variable in DASHBOARD["templating"]["list"][1:]:
        metric, label = re.fullmatch(r"label_values\((\w+).*, (\w+)\)", variable["definition"]).groups()  # type: ignore[union-attr]
        assert label in METRICS[metric]


def test_every_metric_is_shown() -> None:
    """What is exported and not looked at is not needed; what is left out here is for alerts, or told by others."""
    shown = {metric for expression, _ in QUERIES.values() for metric in re.findall(r"vmbackup_\w+", expression)}
    assert METRICS.keys() - shown - NOT_SHOWN == set()


def test_prometheus_takes_every_query(tmp_path: Path) -> None:
    if not shutil.which("promtool"):
        pytest.skip("promtool is missing: apt-get install prometheus")
    rules = [
        {"record": f"panel:{number}", "expr": expression} for number, (expression, _) in enumerate(QUERIES.values())
    ]
    file = tmp_path / "panels.yml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))  # JSON is YAML too
    done = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    assert f"{len(rules)} rules found" in done.stdout


def test_panels_do_not_overlap() -> None:
    """Each has a number of its own, a place of its own, and a title."""
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies over {taken[x, y]}"
                taken[x, y] = panel["title"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)


def test_no_data_source_of_ours() -> None:
    """Whoever imports it chooses a Prometheus."""
    assert {panel["datasource"]["uid"] for panel in PANELS} == {"${source}"}


def test_the_examples_are_taken() -> None:
    folder = ROOT / "monitoring"
    for command in (["promtool", "check", "config", "prometheus.yml"], ["amtool", "check-config", "alertmanager.yml"]):
        if not shutil.which(command[0]):
            pytest.skip(f"{command[0]} is missing: apt-get install prometheus prometheus-alertmanager")
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        assert done.returncode == 0, done.stderr + done.stdout


ROUTES = [
    ("VMBackupTooOld", "critical", "on-call"),
    ("VMBackupLastRunFailed", "warning", "operators"),
    ("Other", "critical", "operators"),
]


@pytest.mark.parametrize(("alert", "severity", "receiver"), ROUTES)
def test_what_is_critical_wakes_someone(alert: str, severity: str, receiver: str) -> None:
    """By Alertmanager's own tool."""
    if not shutil.which("amtool"):
        pytest.skip("amtool is missing: apt-get install prometheus-alertmanager")
    command = ["amtool", "config", "routes", "test", "--config.file=alertmanager.yml"]
    done = subprocess.run(
        [*command, f"alertname={alert}", f"severity={severity}"],
        capture_output=True,
        text=True,
        cwd=ROOT / "monitoring",
    )
    assert done.stdout.strip() == receiver, done.stderr


def test_only_alerts_that_exist_hold_others_back() -> None:
    """A name that was mistyped would hold back nothing."""
    folder = ROOT / "monitoring"
    alerts = set(re.findall(r"- alert: (\w+)", (folder / "vmbackup.rules.yml").read_text()))
    assert set(re.findall(r"VMBackup\w+", (folder / "alertmanager.yml").read_text())) <= alerts
