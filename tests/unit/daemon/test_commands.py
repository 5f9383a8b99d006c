"""Requests as command lines, and that the command line of vmbackup knows them."""

from __future__ import annotations

import pytest

from tests.unit.daemon.rig import backup, copy, prune, request, verify
from vmbackup.cli.app import program
from vmbackup.cli.options import State
from vmbackup.config.load import parse
from vmbackup.daemon.commands import commands
from vmbackup.daemon.work import Kind, Request, Work
from vmbackup.errors import NotFoundError

CONFIG = parse(
    """
    [repositories.local]
    url = "file:///srv/local"
    [repositories.offsite]
    url = "file:///srv/offsite"
    [repositories.offsite.verify]
    schedule = "@daily"
    read_data = 2.5
    [jobs.nightly]
    domains = ["*"]
    copy_to = ["offsite"]
    keep = { last = 3 }
    [jobs.hourly]
    domains = ["*"]
    keep = { last = 3 }
    [jobs.far]
    domains = ["*"]
    repository = "offsite"
    keep = { last = 3 }
    [jobs.forever]
    domains = ["*"]
    drill = { schedule = "@weekly" }
    """,
    "test",
)

CASES = [
    (backup("web01"), ["backup --job nightly --no-copy -- web01"]),
    (backup("web01", full=True), ["backup --job nightly --no-copy --full -- web01"]),
    (backup("--config=/tmp/mine"), ["backup --job nightly --no-copy -- --config=/tmp/mine"]),
    (copy("web01"), ["copy --from local --to offsite -- web01"]),
    (verify("local"), ["--repository local verify"]),
    (verify("offsite"), ["--repository offsite verify --read-data=2.5"]),
    (verify("gone"), ["--repository gone verify"]),
    (
        prune("local"),
        [
            "--repository local forget --job nightly",
            "--repository local forget --job hourly",
            "--repository local prune",
        ],
    ),
    (
        prune("offsite"),
        [
            "--repository offsite forget --job nightly",
            "--repository offsite forget --job far",
            "--repository offsite prune",
        ],
    ),
    (request(Work(Kind.DRILL, "local", "forever", "web01")), ["--repository local drill --job forever -- web01"]),
]


@pytest.mark.parametrize(("asked", "expected"), CASES, ids=lambda value: value if isinstance(value, str) else None)
def test_commands(asked: Request, expected: list[str]) -> None:
    assert commands(CONFIG, asked) == [tuple(line.split()) for line in expected]


def test_a_domain_may_have_any_name() -> None:
    """It is one argument, and never an option."""
    assert commands(CONFIG, backup("a b; c"))[0][-2:] == ("--", "a b; c")


@pytest.mark.parametrize("kind", [Kind.BACKUP, Kind.DRILL])
def test_a_job_that_is_gone(kind: Kind) -> None:
    with pytest.raises(NotFoundError, match='no job "gone" in the configuration any more'):
        commands(CONFIG, request(Work(kind, "local", "gone", "web01")))


@pytest.mark.parametrize("asked", [case[0] for case in CASES])
def test_the_command_line_knows_them(asked: Request) -> None:
    """Every option is one, and the domain arrives as it is named."""
    for command in commands(CONFIG, asked):
        with program.make_context("vmbackup", ["--json", *command], obj=State()) as context:
            name, found, rest = program.resolve_command(context, [*context._protected_args, *context.args])
            assert found
            with found.make_context(name, rest, parent=context) as parsed:
                assert asked.work.domain is None or parsed.params["domains"] == (asked.work.domain,)
