"""The main loop: the watchdog is fed by signs of life only, a reload ends nothing, signals are only noted."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.daemon.states import snapshot
from vmbackup.daemon import serve
from vmbackup.daemon.serve import Loop, Signals, _EndAskedForError
from vmbackup.errors import ConfigError


class Notes:
    """A Notifier that notes what it is told."""

    watchdog_interval = 0.0

    def __init__(self) -> None:
        self.told: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *_: self.told.append(name)


class Service:
    """Does `steps`, one a turn, and asks for the end after the last."""

    def __init__(self, *steps: str, textfile: Path | None = None) -> None:
        self.steps, self.signals = list(steps), SimpleNamespace(end=False, reload=False)
        self.why_sick: str | None = None
        self.fails: Exception | None = None
        self.reloads = 0
        self.config = SimpleNamespace(daemon=SimpleNamespace(textfile=textfile))

    def turn(self, _longest: float) -> None:
        step = self.steps.pop(0)
        self.why_sick = "the scheduler is stuck" if step == "sick" else None
        self.signals.reload = step == "reload"
        self.signals.end = not self.steps

    def sick(self) -> str | None:
        return self.why_sick

    def snapshot(self) -> Any:
        return snapshot()

    def reload(self) -> None:
        self.reloads += 1
        if self.fails:
            raise self.fails


def run(service: Service) -> list[str]:
    notes: Any = Notes()
    parts: Any = service
    signals: Any = service.signals
    Loop(parts, notes, signals).run()
    return [told for told in notes.told if told != "status"]


def test_the_watchdog_is_fed_by_signs_of_life_only() -> None:
    """A service that only breathes is restarted by systemd."""
    assert run(Service("turn", "turn")) == ["watchdog", "watchdog"]
    assert run(Service("sick", "turn", "sick")) == ["watchdog"]


@pytest.mark.parametrize("fails", [None, ConfigError("max_agee"), RuntimeError("a fault of ours")])
def test_a_reload_goes_on_whatever_becomes_of_it(fails: Exception | None) -> None:
    """systemd is told of its begin and its end, and the loop turns on."""
    service = Service("reload", "turn")
    service.fails = fails
    assert run(service) == ["reloading", "ready", "watchdog", "watchdog"]
    assert service.reloads == 1


def test_a_textfile_that_cannot_be_written_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "_TEXTFILE_SECONDS", 0.0)
    service = Service("turn", "turn", "turn", textfile=tmp_path / "no" / "such" / "folder.prom")
    told: list[str] = []
    monkeypatch.setattr(serve._log, "log", lambda _level, text, *args: told.append(text % args))
    run(service)
    assert [text.count("cannot write") for text in told] == [1]
    good = tmp_path / "vmbackup.prom"
    run(Service("turn", textfile=good))
    assert "vmbackup_build_info" in good.read_text()


@pytest.fixture
def signals() -> Iterator[Signals]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield Signals()
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_an_impatient_start_is_left_at_once_and_once(signals: Signals) -> None:
    """A second SIGTERM breaks off no clean-up."""
    os.kill(os.getpid(), signal.SIGHUP)
    assert signals.reload
    with pytest.raises(_EndAskedForError):
        os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    assert signals.end


def test_a_running_service_only_notes_the_end(signals: Signals) -> None:
    signals.impatient = False
    os.kill(os.getpid(), signal.SIGTERM)
    assert signals.end
