"""The alert rules, by Prometheus' own tool: each fires where it must, and is quiet where it must be."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.project.tree import ROOT
from vmbackup.daemon import series

FOLDER = ROOT / "monitoring"
RULES = (FOLDER / "vmbackup.rules.yml").read_text()
TESTS = (FOLDER / "vmbackup.rules.test.yml").read_text()
CONTRACT = {
    "VMBackupTooOld", "VMBackupNeverSucceeded", "VMBackupDomainUnprotected", "VMBackupLastRunFailed",
    "VMBackupDrillTooOld", "VMBackupRepositoryDown", "VMBackupExporterAbsent",
}  # fmt: skip
HEAD, *BLOCKS = re.split(r"(?=^ +- alert: )", RULES, flags=re.MULTILINE)
ALERTS = {block.split("\n", 1)[0].rpartition(" ")[2]: block for block in BLOCKS}
NAMES = {metric.name for metric in series.ALL}

pytestmark = pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is missing: apt-get install prometheus")


def promtool(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, cwd=FOLDER)


def test_the_rules_are_rules() -> None:
    done = promtool("check", "rules", "vmbackup.rules.yml")
    assert done.returncode == 0, done.stderr + done.stdout
    assert f"{len(ALERTS)} rules found" in done.stdout


def test_the_rules_do_what_they_say() -> None:
    done = promtool("test", "rules", "vmbackup.rules.test.yml")
    assert done.returncode == 0, done.stderr + done.stdout


def test_all_alerts_of_the_contract_are_there() -> None:
    assert set(ALERTS) >= CONTRACT


@pytest.mark.parametrize("text", [RULES, TESTS], ids=["rules", "tests"])
def test_metrics_are_those_of_the_service(text: str) -> None:
    """A metric that nobody exports would keep its alert silent for ever."""
    assert set(re.findall(r"vmbackup_\w+", text)) - NAMES == set()


@pytest.mark.parametrize("name", ALERTS)
def test_each_alert_is_told_in_words(name: str) -> None:
    """What is wrong, the command to run, how grave it is; and what to do, in the handbook."""
    assert "summary: " in ALERTS[name]
    assert "description: " in ALERTS[name]
    assert re.search(r"vmbackup (--repository|status|doctor|run|restore|verify)|systemctl", ALERTS[name])
    assert re.search(r"severity: (critical|warning)", ALERTS[name])
    assert f"`{name}`" in (ROOT / "docs/operations.md").read_text()


def cases(name: str) -> str:
    """A file of the tests that are about one alert."""
    head, *tests = re.split(r"(?=^  # )", TESTS, flags=re.MULTILINE)
    return head + "".join(test for test in tests if f"alertname: {name}" in test)


def mutants(block: str) -> Iterator[tuple[str, str]]:
    """The alert with one of its parts taken out, and what was taken."""
    yield re.sub(r"expr:.*?(?=\n        (for|labels):)", "expr: vector(1) > 2", block, flags=re.DOTALL), "all"
    if "        for:" in block:
        yield re.sub(r"        for: .*\n", "", block), "for"
    for clause in re.findall(r"^ {10}(?:and|or|unless) .*\n", block, flags=re.MULTILINE):
        yield block.replace(clause, ""), clause.strip()
    for clause in re.findall(r" > 0\)| or .*?(?= unless|\)$)| unless on .*| > 0$", block, flags=re.MULTILINE):
        yield block.replace(clause, ")" if clause == " > 0)" else ""), clause


@pytest.mark.parametrize("name", ALERTS)
def test_no_part_of_an_alert_is_idle(name: str, tmp_path: Path) -> None:
    """Whatever is taken out of a rule, a case notices it."""
    rules, tests = tmp_path / "vmbackup.rules.yml", tmp_path / "vmbackup.rules.test.yml"
    tests.write_text(cases(name))
    rules.write_text(HEAD + ALERTS[name])
    assert promtool("test", "rules", tests).returncode == 0
    unnoticed = []
    for mutant, what in mutants(ALERTS[name]):
        rules.write_text(HEAD + mutant)
        if promtool("check", "rules", rules).returncode == 0 and promtool("test", "rules", tests).returncode == 0:
            unnoticed.append(what)
    assert unnoticed == []


@pytest.mark.parametrize("name", ALERTS)
def test_each_alert_has_cases_of_both_kinds(name: str) -> None:
    quiet = f"{{alertname: {name}, eval_time:"
    assert quiet in TESTS
    assert f"- alertname: {name}\n" in TESTS
