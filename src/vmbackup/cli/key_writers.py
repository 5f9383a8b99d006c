"""`vmbackup key add-writer` and `revoke-writer`: hosts that back up and read no stored data."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmbackup.cli.options import Command, State
from vmbackup.errors import ConfigError

if TYPE_CHECKING:
    from vmbackup.repository import Repository
    from vmbackup.repository.writers import Enrolment, WriterKeys

_CAN = {
    "backup": "backs up, lists and verifies",
    "prune": "lists, verifies, forgets and prunes",
}


@click.command("add-writer", cls=Command)
@click.option("--name", metavar="HOST", required=True, help="What `key list` calls it: the name of the host.")
@click.option("--group", metavar="NAME", default="default", show_default=True, help="Of hosts that share chunks.")
@click.option(
    "--role",
    type=click.Choice(list(_CAN)),
    default="backup",
    show_default=True,
    help="What it may: make restore points, or forget and prune.",
)
@click.option(
    "--output",
    metavar="FILE",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="A new file (mode 0600) for the key.",
)
@click.pass_obj
def add_writer(state: State, name: str, group: str, role: str, output: Path) -> None:
    """Make a key file with which a host backs up, and reads no stored data.

    Bring FILE to that host, name it there as writer_key_file, and delete it here.
    """
    from vmbackup.cli import access
    from vmbackup.cli.output import say, say_json
    from vmbackup.repository import enrolling

    if output.exists() or output.is_symlink():
        raise ConfigError(f"{output} exists already", "move it away, or name another file")
    config = access.load_config(state)
    with access.opened_repository(config, state.repository) as repository:
        made = enrolling.new_writer(repository, name, group, role)
        _write_then_enrol(repository, made, output)
    writer = made.writer
    if state.json:
        told = {"id": writer.id.hex(), "name": name, "role": role, "group": group}
        say_json({"writer": told, "writer_key_file": str(output.absolute())})
    else:
        say(f"Wrote {output}: with it '{name}' {_CAN[role]} in group {group}, and reads no stored data.")
        say("Bring it to that host (mode 0600), name it there as writer_key_file, and delete it here.")


def _write_then_enrol(repository: "Repository", made: "WriterKeys", output: Path) -> None:
    """The file first: no key is enrolled that nobody has. After a failure it goes, unless the key may count."""
    from vmbackup.config.secrets import write_secret_file
    from vmbackup.repository import enrolling

    write_secret_file(output, made.to_text())
    try:
        enrolling.enrol(repository, made)
    except BaseException:
        if not repository.exists(f"writers/{made.writer.id.hex()}"):
            output.unlink()
        raise


@click.command("revoke-writer", cls=Command)
@click.argument("name")
@click.option("--undo-since", metavar="TIME", help="Bring back what it forgot since then, as far as still stored.")
@click.pass_obj
def revoke_writer(state: State, name: str, undo_since: str | None) -> None:
    """End what the key of a host may do: NAME is its name or id in `key list`.

    What it committed so far stands; what it commits from now on is quarantined: told, kept, and never used. What it
    forgot stays forgotten, for good, but for what --undo-since brings back.
    """
    from vmbackup.cli import access
    from vmbackup.cli.output import clean, counted, say, say_json
    from vmbackup.repository.enrolling import revoke
    from vmbackup.repository.resolve import parse_time

    since = parse_time(undo_since).timestamp() if undo_since is not None else None
    config = access.load_config(state)
    with access.opened_repository(config, state.repository) as repository:
        done = revoke(repository, name, undo_since=since)
    if state.json:
        counts = {"standing": done.standing, "forgotten": done.forgotten, "undone": done.undone}
        say_json({"writer": writer_document(done.writer), **counts})
        return
    say(f"Revoked '{clean(done.writer.name)}'. {counted(done.standing, 'commit')} of it stand, as they stood now.")
    if done.forgotten or done.undone:
        say(f"Of what it forgot {done.forgotten} stay forgotten and {done.undone} come back, as far as still stored.")
    say("What it signs later is quarantined: 'vmbackup list' tells of it, nothing uses it.")
    say("Take its access to the store away too, and look through what it made last.")


def writer_document(writer: "Enrolment") -> dict[str, object]:
    """A writer as JSON."""
    return {
        "id": writer.id.hex(),
        "name": writer.name,
        "role": writer.role,
        "group": writer.group,
        "revoked": writer.revoked,
    }


def hosts(writers: Iterable["Enrolment"]) -> list["Enrolment"]:
    """Those with a key file, by name: the readers' own enrolment is none of them."""
    return sorted((w for w in writers if w.role != "reader"), key=lambda w: (w.name, w.id))


def writers_table(writers: Iterable["Enrolment"]) -> str:
    """A line a writer."""
    from vmbackup.cli.output import table

    rows = [(w.name, w.role, w.group, w.id.hex(), "revoked" if w.revoked else "") for w in writers]
    return table(("WRITER", "ROLE", "GROUP", "ID", ""), rows)
