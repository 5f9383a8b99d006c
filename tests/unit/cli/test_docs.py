"""docs/operations.md tells of every command, option, kind of error and exit code."""

from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from vmbackup import errors
from vmbackup.cli.app import COMMANDS, program
from vmbackup.storage_backends.base import StoreError

PAGE = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()


def _all(kind: type) -> Iterator[type]:
    yield kind
    for inner in kind.__subclasses__():
        yield from _all(inner)


def _options() -> Iterator[tuple[str, str]]:
    ctx = click.Context(program)
    for name in COMMANDS:
        command = program.get_command(ctx, name)
        assert command is not None
        inner = list(command.commands.values()) if isinstance(command, click.Group) else [command]
        for one in inner:
            yield from ((name, p.opts[-1]) for p in one.params if isinstance(p, click.Option) and not p.hidden)


@pytest.mark.parametrize("error", sorted(_all(errors.VmbackupError), key=lambda e: e.__name__))
def test_each_kind_of_error(error: type[errors.VmbackupError]) -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("|") and f"`{error.kind}`" in line.split("|")[1]]
    assert rows, error.kind
    assert rows[0].split("|")[2].strip() == str(error.exit_code)


@pytest.mark.parametrize("kind", ["store_url", "store_missing", "store_full", "store_unavailable", "nbd", "internal"])
def test_each_kind_of_store_and_system(kind: str) -> None:
    assert f"`{kind}`" in PAGE
    assert any(error.kind == kind for error in _all(StoreError)) or not kind.startswith("store")


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command(name: str) -> None:
    assert f"| `{name} " in PAGE


@pytest.mark.parametrize(("name", "option"), sorted(set(_options())))
def test_each_option(name: str, option: str) -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith(f"| `{name} ")]
    assert any(option in row for row in rows), f"{option} of {name}"
