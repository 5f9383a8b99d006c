"""A guest's console: the last lines, harmless to a terminal, however they come."""

from __future__ import annotations

import random

import pytest

from vmbackup.hypervisor.started.console import Console, clean

BOOT = "SeaBIOS\r\n\x1b[2J\x1b[01;31mLoading…\x1b[0m\r\n[ OK ] Started ssh\nweb01 login: "


def test_lines_are_the_same_however_they_arrive() -> None:
    """In one piece, or byte by byte, in the middle of a character and of a line's end."""
    whole, pieces = Console(), Console()
    whole.feed(BOOT.encode())
    for byte in BOOT.encode():
        pieces.feed(bytes((byte,)))
    assert whole.last(9) == pieces.last(9) == ["SeaBIOS", "Loading…", "[ OK ] Started ssh", "web01 login:"]


def test_a_line_that_goes_on_is_told_as_it_grows() -> None:
    console = Console()
    assert console.feed(b"one\nweb01 lo") == ["one", "web01 lo"]
    assert console.feed(b"gin: ") == ["web01 login:"]
    assert console.last(1) == ["web01 login:"]


@pytest.mark.parametrize(
    "line",
    ["\x1b[31mred\x1b[0m", "\x1b[=3hred", "\x1b]0;title\x07red", "\x1b]0;title\x1b\\red", "\x1b(Bred",
     "\x1b7red\x1b8", "r\x00e\x07d", "\u202ered"],
)  # fmt: skip
def test_what_a_terminal_would_obey_is_left_out(line: str) -> None:
    assert clean(line) == "red"


def test_a_flood_costs_no_memory() -> None:
    """Neither endless lines nor a line without an end."""
    console = Console()
    for seed in range(200):
        console.feed(random.Random(seed).randbytes(50_000) + b"x" * 50_000)
    assert len(console.last(10_000)) <= 201
    assert sum(map(len, console.last(10_000))) <= 201 * 500
