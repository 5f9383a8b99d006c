"""`vmbackup boot`: what can be said without a hypervisor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.boot.test_state import BOOTED
from vmbackup.cli import access
from vmbackup.cli.boot_output import listed_document, listed_text
from vmbackup.engine.boot.boot import ListedBoot
from vmbackup.errors import AccessError

Run = Callable[..., Any]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "the restore point to boot, or its new name, is missing"),
        (["web"], "the restore point to boot, or its new name, is missing"),
        (["--name", "new"], "--name and --network go with a restore point"),
        (["web", "--name", "new", "--output", "/srv"], "--output goes with --finish"),
        (["--finish", "new", "--discard", "new"], "--finish and --discard go alone"),
        (["web", "--list"], "--list goes alone"),
    ],
)
def test_what_cannot_be_meant_is_said(run: Run, arguments: list[str], says: str) -> None:
    result = run("boot", *arguments)
    assert result.code == 2
    assert f"error: {says}\n" in result.err


@pytest.mark.parametrize("option", ["--finish", "--discard", "--start"])
def test_a_guest_that_is_not_booted(run: Run, option: str) -> None:
    result = run("boot", option, "new")
    assert result.code == 5
    assert result.err == (
        "error: no guest new hangs on a repository here\n"
        "       none does: it was finished or discarded, or never booted\n"
    )


def test_no_guest_is_listed(run: Run) -> None:
    assert run("boot", "--list").out == "no guest hangs on a repository here\n"
    assert run("--json", "boot", "--list").json == {"booted": []}


def test_a_name_that_is_none_is_refused_before_the_repository_is_opened(run: Run) -> None:
    result = run("boot", "web", "--name", "../new")
    assert result.code == 2
    assert "'../new' is no name for a booted guest" in result.err


def test_a_name_that_is_taken_is_refused(run: Run) -> None:
    result = run("boot", "web", "--name", "test")  # the one domain of libvirt's test driver
    assert result.code == 1
    assert result.err == "error: there is a domain test already\n       give another --name\n"


def test_a_typed_passphrase_is_refused(repository: Path, config_file: Path, run: Run) -> None:
    """The server is started again with nobody at a terminal."""
    text = config_file.read_text()
    lines = [line for line in text.splitlines() if not line.startswith("passphrase_file")]
    config_file.write_text("\n".join(lines))
    result = run("boot", "web", "--name", "new")
    assert result.code == 6
    assert 'the passphrase of repository "local" is typed' in result.err


def test_a_writers_key_needs_no_terminal() -> None:
    from vmbackup.config.models import Repository

    access.check_unattended("local", Repository(url="file:///r", writer_key_file="/k"))
    with pytest.raises(AccessError):
        access.check_unattended("local", Repository(url="file:///r"))


@pytest.mark.usefixtures("utc")
def test_the_list_says_what_is_wrong_and_what_mends_it() -> None:
    listed = ListedBoot(BOOTED, "error", served=False, error="no such bucket", overlay_bytes=1 << 20)
    head, row, *rest = listed_text([listed]).splitlines()
    assert head.split("  ")[0] == "GUEST"
    assert "web-rescue" in row
    assert "a disk cannot be read or written" in row
    assert rest[0] == (
        "web-rescue is not served: no such bucket; 'vmbackup boot --start web-rescue' serves and starts it again"
    )
    (entry,) = listed_document([listed])["booted"]
    assert entry["state"] == "error"
    assert entry["served"] is False
    assert entry["overlay_bytes"] == 1 << 20
