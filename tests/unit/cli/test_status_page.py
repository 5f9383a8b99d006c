"""The lines of `vmbackup status`, word by word, and what must hold whatever the service tells.

The texts stand in status/; `UPDATE=1` writes them anew, to be read before they are kept.
"""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.unit.daemon.states import DAY, ERROR, HOUR, NOW, guest, last, many, running, snapshot, store, three
from vmbackup.cli.overview import Overview
from vmbackup.cli.status_page import page
from vmbackup.daemon.snapshot import CopyState, DrillState, Snapshot

pytestmark = pytest.mark.usefixtures("utc")
TEXTS = Path(__file__).parent / "status"
HOSTILE = [
    "a" * 120,
    "red\x1b[31m\x07name",
    "two\nlines\r\tof it",
    "[bold]markup[/bold]",
    "right\u202eto left",
    "数据库服务器" * 6,
    "zero\u200bwidth",
]


def hostile() -> Snapshot:
    guests = [guest(name, last_run=last("failed", error=f"{name} {ERROR} {'x' * 150}")) for name in HOSTILE]
    return snapshot(*guests, unprotected=tuple(HOSTILE), runs=(running(HOSTILE[0]), running(HOSTILE[1])))


def troubled() -> Snapshot:
    """Everything that can be wrong, once."""
    drill = DrillState(NOW - 20 * DAY, 15 * DAY, NOW + DAY, last("failed", 2 * HOUR, "the agent did not answer"))
    copy = CopyState("vault", 0.0, None, last("failed", error="no"))
    copies = (CopyState("offsite", NOW - 40 * HOUR, 30 * HOUR), copy)
    return snapshot(
        guest("mail", 27 * HOUR, drill=drill, copies=copies, job="hourly"),
        guest("new", 0, last_run=None),
        guest("db01", 20 * HOUR, last_run=last("failed", error=ERROR)),
        guest("gone", 25 * HOUR, present=False, next_run=0.0),
        guest("twice", 3 * HOUR, last_run=last("warning")),
        guest("twice", 3 * HOUR, job="hourly", max_age=None, last_run=last("cancelled")),
        guest("late", 20 * HOUR, drill=DrillState(NOW - 20 * DAY, 15 * DAY), next_run=NOW + 8 * HOUR),
        state="stopping",
        config_ok=False,
        config_error='/etc/vmbackup/config.toml:12: unknown key "shedule": did you mean "schedule"?',
        libvirt_error="cannot connect to qemu:///system",
        repositories=(
            store(damaged_objects=3, last_prune=NOW - 2 * DAY),
            store("offsite", last_verify_run=last("failed", error="2 objects are damaged")),
            store("vault", up=False, looked=0.0, bytes=None, points=0, last_prune=0.0, prune_max_age=None),
        ),
        runs=(replace(running("late"), state="cancelling"), running("db01", kind="copy", target="offsite")),
    )


SAMPLES = {"empty": snapshot, "three": three, "many": many, "hostile": hostile, "troubled": troubled}


def lines(shown: Snapshot, width: int | None, height: int | None = None) -> list[str]:
    return [line.plain for line in page(Overview(shown.document()), width, height)]


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("width", [80, 200])
def test_word_by_word(name: str, width: int) -> None:
    path = TEXTS / f"{name}-{width}.txt"
    found = "\n".join(lines(SAMPLES[name](), width)) + "\n"
    if os.environ.get("UPDATE"):
        path.write_text(found)
    assert found == path.read_text()


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("width", [80, 100, 132, 200])
def test_it_fits_the_width(name: str, width: int) -> None:
    """Only a name that is longer than the terminal may stand out."""
    wide = [line for line in lines(SAMPLES[name](), width) if cell_len(line) > width]
    assert [line for line in wide if "a" * 120 not in line] == []


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("width", [40, 80, 200, None])
def test_no_name_is_lost(name: str, width: int | None) -> None:
    shown = SAMPLES[name]()
    text = "\n".join(lines(shown, width))
    assert [g.domain for g in shown.guests if " ".join(_seen(g.domain).split()) not in text] == []


def _seen(name: str) -> str:
    for hidden in "\x1b\x07\n\r\t\u202e\u200b":
        name = name.replace(hidden, " " if hidden == "\n" else "?")
    return name


def test_nothing_steers_the_terminal() -> None:
    text = "".join(lines(hostile(), 80))
    assert not any(character in text for character in "\x1b\x07\r\t\u202e\u200b")


@pytest.mark.parametrize("height", [5, 24, 50, 500])
def test_a_screen_has_so_many_lines_and_the_worst_first(height: int) -> None:
    found = lines(many(), 80, height)
    assert len(found) <= height
    assert "6 of 300 guests break their promise" in found[1]
    if height == 50:
        assert found[-1].startswith("and ")
        shown = sum(bool(re.match(r"guest\d{3} +\S+ +\d", line)) for line in found)
        assert f"and {300 - shown} more guests: " in found[-1]


def test_exit_codes() -> None:
    def code(shown: Snapshot, domain: str | None = None) -> int:
        return Overview(shown.document(), domain).exit_code

    fine = snapshot(guest())
    assert code(fine) == 0
    assert code(snapshot()) == 0
    assert code(replace(fine, unprotected=("x",))) == 0
    assert code(replace(fine, state="starting")) == 3  # nothing is known yet: no good answer to a script
    assert code(replace(fine, config_ok=False)) == 3
    assert code(replace(fine, repositories=(store(up=False, error="no answer"),))) == 3
    assert code(replace(fine, repositories=(store(up=False),))) == 0  # not looked at since the start
    assert code(replace(fine, repositories=(store(damaged_objects=1),))) == 3
    assert code(replace(fine, repositories=(store(last_prune=NOW - 3 * DAY),))) == 3
    assert code(snapshot(guest(last_run=last("failed")))) == 3
    assert code(snapshot(guest(last_run=last("warning")))) == 0
    assert code(snapshot(guest(ago=27 * HOUR))) == 3
    assert code(snapshot(guest(ago=0))) == 3
    assert code(snapshot(guest(ago=0, max_age=None))) == 0
    assert code(snapshot(guest(copies=(CopyState("offsite", 0.0, HOUR),)))) == 3
    assert code(snapshot(guest(drill=DrillState(0.0, HOUR)))) == 3
    assert code(snapshot(guest(drill=DrillState(0.0, HOUR), known_since=NOW - 2 * HOUR))) == 3
    assert code(snapshot(guest(drill=DrillState(0.0, HOUR), known_since=NOW - HOUR / 2))) == 0  # it is not late yet
    assert code(snapshot(guest(copies=(CopyState("offsite", 0.0, HOUR),), known_since=NOW - HOUR / 2))) == 0
    assert code(snapshot(guest(ago=0, known_since=NOW))) == 3  # a backup is missing from the first moment on
    assert code(replace(fine, repositories=(store(last_prune=0.0, known_since=NOW - DAY / 2),))) == 0
    assert code(replace(fine, repositories=(store(last_prune=0.0, known_since=NOW - 3 * DAY),))) == 3
    assert code(three(), "app01") == 0
    assert code(three(), "web01") == 3


def test_the_worst_comes_first() -> None:
    names = [g.name for g in Overview(troubled().document()).guests]
    assert names[:4] == ["mail", "new", "db01", "late"]
    assert names[-1] == "twice (hourly)"
