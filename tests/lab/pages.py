"""Follows a page of docs/: its fenced blocks are run in their order, on this machine or inside its guests.

    ```sh               run by bash on this machine; it fails with its first command that fails
    ```sh guest [NAME]  run in that guest by its agent, once that answers; NAME is `web1` unless told
    ```text, ```toml    shown only

Any other block is an error: what nobody runs may be wrong. The few words of a page that cannot be as they stand here
(names, folders, addresses) are exchanged by a table, of which every row must be of use.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .agent import Agent, GuestCommandError

DOCS = Path(__file__).parents[2] / "docs"
GUEST = "web1"
BLOCK_TIMEOUT = 600.0   # seconds; guests under emulation are slow, and have neighbours
AGENT_TIMEOUT = 400.0   # seconds until the agent of a guest that boots answers
SHOWN = ("text", "toml")
TAIL = 4000             # characters of a block's output that a failure shows


class PageError(Exception):
    """A page cannot be followed; the message begins with its file and line."""


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, under which `##` heading, and for whom."""

    place: str
    section: str
    kind: Literal["host", "guest", "shown"]
    guest: str
    text: str


def blocks(page: Path) -> list[Block]:
    """All blocks of a page. Raises PageError for one that is neither run nor shown."""
    return list(_blocks(page.name, page.read_text().splitlines()))


def _blocks(name: str, lines: list[str]) -> Iterator[Block]:
    section, opened, fence, taken = "", 0, "", list[str]()
    for number, line in enumerate(lines, 1):
        if opened and line.strip() == "```":
            yield _block(f"{name}:{opened}", section, fence.split(), "\n".join(taken) + "\n")
            opened = 0
        elif opened:
            taken.append(line)
        elif line.lstrip().startswith("```"):
            opened, fence, taken = number, line.strip().removeprefix("```"), []
        elif line.startswith("## "):
            section = line.removeprefix("## ").strip()
    if opened:
        raise PageError(f"{name}:{opened}: the block has no end")


def _block(place: str, section: str, words: list[str], text: str) -> Block:
    match words:
        case ["sh"]:
            return Block(place, section, "host", "", text)
        case ["sh", "guest", *name] if len(name) <= 1:
            return Block(place, section, "guest", name[0] if name else GUEST, text)
        case [shown] if shown in SHOWN:
            return Block(place, section, "shown", "", text)
    raise PageError(f"{place}: nobody knows what to do with a block of '{' '.join(words)}'")


@dataclass
class Follower:
    """Follows one page. `folder`: where commands begin. `exchanged`: words of the page and what stands for them here.

    `names` are those of guests, exchanged as whole words, also as the beginning of `web1-copy`.
    """

    page: Path
    folder: Path
    environment: Mapping[str, str]
    exchanged: Mapping[str, str]
    names: Mapping[str, str]
    agent_of: Callable[[str], Agent]
    seconds: dict[str, float] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def follow(self, *sections: str) -> None:
        """Runs the blocks of these sections, or of those whose headings begin so. Raises PageError."""
        for section in sections:
            found = [block for block in blocks(self.page) if block.section.startswith(section)]
            if not found:
                raise PageError(f"{self.page.name}: there is no block under a heading '{section}'")
            for block in found:
                self._run(block)

    def unused(self) -> list[str]:
        """Words to be exchanged that no block had."""
        return sorted({*self.exchanged, *self.names} - self.used)

    def put_right(self, text: str) -> str:
        """A host's block with the words exchanged; the longest first, so that one may be a part of another."""
        for word in sorted(self.exchanged, key=len, reverse=True):
            if word in text:
                self.used.add(word)
                text = text.replace(word, self.exchanged[word])
        for name in self.names:
            text, count = re.subn(rf"(?<![\w/-]){name}\b|(?<=/){name}\b", self.names[name], text)
            if count:
                self.used.add(name)
        return text

    def _run(self, block: Block) -> None:
        start = time.monotonic()
        if block.kind == "guest":
            self._in_guest(block)
        elif block.kind == "host":
            self._on_host(block)
        self.seconds[block.place] = time.monotonic() - start

    def _in_guest(self, block: Block) -> None:
        agent = self.agent_of(self.put_right(block.guest))
        try:
            agent.wait(AGENT_TIMEOUT)
            agent.run(f"set -eu\n{block.text}", timeout=BLOCK_TIMEOUT)
        except (GuestCommandError, TimeoutError) as error:
            raise PageError(f"{block.place}: {error}") from error

    def _on_host(self, block: Block) -> None:
        text = self.put_right(block.text)
        # A file, no pipe: what a block leaves running holds its output open
        log = self.folder / "output"
        with log.open("wb") as output:
            try:
                done = subprocess.run(
                    ["bash", "-euo", "pipefail", "-c", text], cwd=self.folder, env=dict(self.environment), check=False,
                    stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=BLOCK_TIMEOUT)
            except subprocess.TimeoutExpired as error:
                raise PageError(f"{block.place}: not done in {BLOCK_TIMEOUT:.0f} s:\n{text}{_end(log)}") from error
        if done.returncode:
            raise PageError(f"{block.place}: exit code {done.returncode} of\n{text}{_end(log)}")


def _end(log: Path) -> str:
    return "---\n" + log.read_text(errors="replace")[-TAIL:]
