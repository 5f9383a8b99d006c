"""`vmbackup key`: the key slots of a repository, each opened by a passphrase or a recovery key of its own."""

from datetime import datetime
from pathlib import Path

import click

from vmbackup.cli.key_change import change, remove, rotate
from vmbackup.cli.key_writers import add_writer, hosts, revoke_writer, writer_document, writers_table
from vmbackup.cli.options import Command, Group, State, new_passphrase_option


@click.group("key", cls=Group, short_help="List, add and revoke what opens the repository.")
def command() -> None:
    """The passphrases and recovery keys that open the repository, and the key files of hosts that back up."""


command.add_command(add_writer)
command.add_command(revoke_writer)
command.add_command(remove)
command.add_command(change)
command.add_command(rotate)


@command.command("list", cls=Command)
@click.pass_obj
def list_slots(state: State) -> int:
    """List the key slots and the writers' keys; nothing secret is shown."""
    from vmbackup.cli import access
    from vmbackup.cli.output import local_time, say, say_json, table, warn
    from vmbackup.errors import DamageError
    from vmbackup.repository import slots as key_slots
    from vmbackup.repository.keys import SlotInfo

    config = access.load_config(state)
    with access.opened_repository(config, state.repository) as repository:
        found = list(key_slots.listed(repository))
        writers = hosts(repository.writers().values())
        removed = {s.id for s in found if isinstance(s, SlotInfo) and not key_slots.in_force(repository, s.id)}
    slots = sorted((slot for slot in found if not isinstance(slot, DamageError)), key=lambda s: s.created)
    damaged = [slot for slot in found if isinstance(slot, DamageError)]
    if state.json:
        keys = [
            {"id": s.id, "kind": s.kind, "label": s.label, "created": s.created, "removed": s.id in removed}
            for s in slots
        ]
        broken = [{"object": d.object_key, "problem": d.message} for d in damaged]
        say_json({"keys": keys, "writers": [writer_document(w) for w in writers], "damaged": broken})
    else:
        rows = [
            (s.id, s.kind, s.label, local_time(datetime.fromisoformat(s.created)), "removed" if s.id in removed else "")
            for s in slots
        ]
        say(table(("KEY", "KIND", "LABEL", "CREATED", ""), rows))
        if writers:
            say()
            say(writers_table(writers))
        for error in damaged:
            warn(error.message)
    return 4 if damaged else 0


@command.command("add", cls=Command)
@click.option("--label", metavar="TEXT", help="What `key list` shows of it; this host's name unless told.")
@new_passphrase_option
@click.pass_obj
def add(state: State, label: str | None, file: Path | None) -> None:
    """Add a passphrase that opens the repository beside those it has."""
    from vmbackup.cli import access
    from vmbackup.cli.output import say, say_json
    from vmbackup.repository import slots
    from vmbackup.repository.keys import Secret

    config = access.load_config(state)
    name, _ = access.named_repository(config, state.repository)
    with access.opened_repository(config, state.repository) as repository:
        secret = Secret.passphrase(access.new_passphrase(name, file))
        slot = slots.add(repository, secret, label or access.host_name())
    if state.json:
        say_json({"key": {"id": slot, "kind": secret.kind, "label": label or access.host_name()}})
    else:
        say(f"Added key {slot}: the repository opens with the new passphrase too.")


@command.command("export-recovery", cls=Command)
@click.option(
    "--output",
    metavar="FILE",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="A new file (mode 0600) for the recovery key.",
)
@click.option("--label", metavar="TEXT", help="What `key list` shows of it; this host's name unless told.")
@click.pass_obj
def export_recovery(state: State, output: Path, label: str | None) -> None:
    """Make a new recovery key and write it to FILE. Earlier ones stay good."""
    from vmbackup.cli import access
    from vmbackup.cli.output import say, say_json
    from vmbackup.cli.recovery import recovery_file
    from vmbackup.repository import slots

    config = access.load_config(state)
    name, settings = access.named_repository(config, state.repository)
    with access.opened_repository(config, state.repository) as repository, recovery_file(output) as write:
        key = slots.add_recovery(repository, label or access.host_name())
        write(name, repository.id, settings.url, key)
    if state.json:
        say_json({"recovery_key_file": str(output.absolute())})
    else:
        say(f"Wrote a new recovery key to {output}. Keep it off this machine, then delete the file.")
