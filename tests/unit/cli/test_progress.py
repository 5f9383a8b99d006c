"""Progress goes to standard error: a line at a pace for logs, bars on a terminal, nothing with -q."""

import contextlib
import io
import os
import pty
import sys
import time

import pytest

from vmbackup.cli.output import say
from vmbackup.cli.progress import Bars, Lines, shown_progress
from vmbackup.progress import Silent


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_lines_tell_share_rate_and_time_left() -> None:
    out, clock = io.StringIO(), _Clock()
    lines = Lines(out, clock=clock, every=None)
    lines.start("web1 vda", 10 << 30)
    lines.advance("web1 vda", 3 << 30)
    clock.now = 30.0
    lines.tell()
    lines.advance("web1 vda", 7 << 30)
    clock.now = 100.0
    lines.finish("web1 vda")
    lines.finish("web1 vda")
    assert out.getvalue().splitlines() == [
        "web1 vda: 3.00 GiB of 10.0 GiB (30 %), 102 MiB/s, 1 min 10 s left",
        "web1 vda: 10.0 GiB of 10.0 GiB (100 %), 102 MiB/s",
    ]


def test_short_work_says_nothing() -> None:
    out = io.StringIO()
    lines = Lines(out, every=30)
    lines.start("a", None)
    lines.advance("a", 5)
    lines.finish("a")
    lines.close()
    assert out.getvalue() == ""


def test_the_pace_is_kept_without_any_advance() -> None:
    """Work that hangs still says that it does."""
    out = io.StringIO()
    lines = Lines(out, every=0.01)
    lines.start("a", None)
    while "a: 0 B, 0 B/s\n" not in out.getvalue():
        time.sleep(0.01)
    lines.close()


def test_work_of_unknown_size_and_unknown_names() -> None:
    out, clock = io.StringIO(), _Clock()
    lines = Lines(out, clock=clock, every=None)
    lines.advance("never started", 5)
    lines.start("a\x1b", None)
    lines.advance("a\x1b", 1 << 20)
    clock.now = 1.0
    lines.tell()
    lines.note("half \x07way")
    assert out.getvalue() == "a?: 1.00 MiB, 1.00 MiB/s\nhalf ?way\n"


def test_off_a_terminal_there_are_lines_and_quiet_is_silent() -> None:
    with shown_progress(quiet=False) as sink:
        assert isinstance(sink, Lines)
    with shown_progress(quiet=True) as sink:
        assert isinstance(sink, Silent)


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Bars and notes on standard error; results stay on standard output, where a script may read them."""
    monkeypatch.setenv("TERM", "xterm")
    primary, secondary = pty.openpty()
    try:
        with os.fdopen(secondary, "w", closefd=True) as terminal:
            monkeypatch.setattr(sys, "stderr", terminal)
            with shown_progress(quiet=False) as sink:
                assert isinstance(sink, Bars)
                sink.start("web1 [vda]", 100 << 20)
                sink.advance("web1 [vda]", 50 << 20)
                sink.note("half way")
                say("result")
                sink.finish("web1 [vda]")
                say("result")
            terminal.flush()
        shown = _read_all(primary)
    finally:
        os.close(primary)
    assert "web1 [vda]" in shown
    assert capsys.readouterr().out == "result\nresult\n"
    assert "result" not in shown
    assert "half way" in shown


def _read_all(terminal: int) -> str:
    """What was written to a terminal whose other end is closed."""
    found = b""
    with contextlib.suppress(OSError):  # EIO tells the end
        while part := os.read(terminal, 65536):
            found += part
    return found.decode()
