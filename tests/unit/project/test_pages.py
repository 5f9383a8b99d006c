"""The pages of the first day and of disaster day: nothing on them is left unfollowed, and their commands exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from tests.lab.pages import DOCS, Block, Follower, PageError, blocks
from vmbackup.cli.app import program
from vmbackup.errors import UsageError

PAGES = ("first-day.md", "disaster-day.md")
HOST = "## One\n```sh\n{}\n```\n"


def _page(folder: Path, text: str) -> Path:
    (folder / "page.md").write_text(text)
    return folder / "page.md"


def _follower(page: Path, **exchanged: str) -> Follower:
    def nobody(name: str) -> None:
        raise AssertionError(name)

    return Follower(page, page.parent, {"PATH": "/usr/bin:/bin"}, exchanged, {"web1": "lab-1"}, nobody)


def _commands(text: str) -> list[list[str]]:
    """The calls of vmbackup in a shell's text."""
    inner = re.findall(r"\$\(([^)]*)\)", text)
    text = re.sub(r"\$\([^)]*\)", "POINT", text.replace("\\\n", " "))
    found = re.findall(r"(?:^|\|\| )vmbackup ([^|\n>;]+)", "\n".join([text, *inner]), re.MULTILINE)
    return [shlex.split(arguments) for arguments in found]


@pytest.mark.parametrize("name", PAGES)
def test_every_block_is_followed_or_shown(name: str) -> None:
    kinds = {block.kind for block in blocks(DOCS / name)}
    assert kinds == {"host", "guest", "shown"}


@pytest.mark.parametrize("name", PAGES)
def test_every_command_can_be_meant(name: str) -> None:
    """Those of the blocks with all their options and arguments, as the command line reads them."""
    commands = [words for block in blocks(DOCS / name) if block.kind == "host" for words in _commands(block.text)]
    assert len(commands) > 10
    for words in commands:
        _read(words)


@pytest.mark.parametrize("words", ["restore web1 --inplace", "back up", "boot web1 --finish", "--config", "key ad"])
def test_a_command_that_is_none_is_seen(words: str) -> None:
    with pytest.raises((click.UsageError, UsageError)):
        _read(shlex.split(words))


def _read(words: list[str]) -> None:
    context: click.Context = program.make_context("vmbackup", list(words))
    while isinstance(context.command, click.Group):
        left = [*context._protected_args, *context.args]
        name, command, rest = context.command.resolve_command(context, left)
        assert command is not None, words
        context = command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("fence", ["", "bash", "sh host", "sh guest one two"])
def test_a_block_that_nobody_knows_is_an_error(tmp_path: Path, fence: str) -> None:
    with pytest.raises(PageError, match=r"page.md:2: nobody knows"):
        blocks(_page(tmp_path, f"text\n```{fence}\ntrue\n```\n"))


def test_a_block_without_an_end_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PageError, match=r"page.md:1: the block has no end"):
        blocks(_page(tmp_path, "```sh\ntrue\n"))


def test_blocks_know_their_place(tmp_path: Path) -> None:
    page = _page(tmp_path, "# Title\n## 1. One\n```sh guest web1-copy\ntrue\n```\n## 2. Two\n```text\nshown\n```\n")
    assert blocks(page) == [
        Block("page.md:3", "1. One", "guest", "web1-copy", "true\n"),
        Block("page.md:7", "2. Two", "shown", "", "shown\n"),
    ]


def test_the_first_command_that_fails_ends_it(tmp_path: Path) -> None:
    """The message has the place and what was printed."""
    page = _page(tmp_path, HOST.format("echo before >&2\nfalse | cat\ntouch after"))
    with pytest.raises(PageError, match=r"(?s)page.md:2: exit code 1.*before"):
        _follower(page).follow("One")
    assert not (tmp_path / "after").exists()


def test_words_and_names_are_exchanged(tmp_path: Path) -> None:
    """A longer word before a part of it; names as whole words, in paths, and as beginnings of others' names."""
    page = _page(tmp_path, HOST.format("echo /srv/a /srv/b web1 web1-copy i/web1.img xweb1 web12 x-web1 >out"))
    follower = _follower(page, **{"/srv/": "/tmp/", "/srv/a": "/A", "nowhere": ""})
    follower.follow("One")
    assert (tmp_path / "out").read_text() == "/A /tmp/b lab-1 lab-1-copy i/lab-1.img xweb1 web12 x-web1\n"
    assert follower.unused() == ["nowhere"]


def test_a_heading_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PageError, match="there is no block under a heading 'Two'"):
        _follower(_page(tmp_path, HOST.format("true"))).follow("Two")
