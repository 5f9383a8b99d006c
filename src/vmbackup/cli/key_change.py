"""`vmbackup key remove`, `change` and `rotate`: what opens the repository from now on, and what does no more."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmbackup.cli.options import Command, State, new_passphrase_option
from vmbackup.errors import UsageError

if TYPE_CHECKING:
    from vmbackup.config.models import Repository as Settings
    from vmbackup.repository.keys import SlotInfo

_KEPT = "the store did not delete the object of key {} (locked, or not permitted): vmbackup opens nothing with it"


@click.command("remove", cls=Command)
@click.argument("slot")
@click.option("--allow-recovery", is_flag=True, help="Also a recovery key.")
@click.pass_obj
def remove(state: State, slot: str, allow_recovery: bool) -> None:
    """Remove a passphrase or recovery key: SLOT is its id in `key list`, or the beginning of it."""
    from vmbackup.cli import access
    from vmbackup.cli.output import say, say_json, warn
    from vmbackup.repository import slots

    config = access.load_config(state)
    with access.opened_repository(config, state.repository) as repository:
        info, gone = slots.remove(repository, slot, allow_recovery=allow_recovery)
    name = info.id if info else slot
    if state.json:
        say_json({"removed": {"id": name, "kind": info.kind if info else None}, "deleted": gone})
    else:
        say(f"Removed key {name}: it opens the repository no more. Who read the keys with it before still has them.")
    if not gone:
        warn(_KEPT.format(name))


@click.command("change", cls=Command)
@new_passphrase_option
@click.pass_obj
def change(state: State, file: Path | None) -> None:
    """Put a new passphrase in place of the one that opens the repository here.

    The passphrase_file of the configuration gets the new one, before the old one stops to open.
    """
    from vmbackup.cli import access
    from vmbackup.cli.output import say, say_json, warn
    from vmbackup.config.secrets import replace_secret_file
    from vmbackup.repository import slots
    from vmbackup.repository.keys import Secret

    config = access.load_config(state)
    name, settings = access.named_repository(config, state.repository)
    with access.opened_repository(config, state.repository) as repository:
        text = access.new_passphrase(name, file)
        path = settings.passphrase_file
        write = (lambda: replace_secret_file(path, text + "\n")) if path else (lambda: None)
        old, new, gone = slots.change(repository, Secret.passphrase(text), write)
    if state.json:
        told = str(path) if path else None
        say_json({"key": {"id": new}, "removed": {"id": old}, "deleted": gone, "passphrase_file": told})
    else:
        say(f"Key {new} took the place of key {old}: the repository opens with the new passphrase.")
        say(f"{path} holds it now." if path else f"{_source(settings)} has to give it from now on.")
        say("Other hosts that open it by the old one need the new one too.")
    if not gone:
        warn(_KEPT.format(old))


def _source(settings: "Settings") -> str:
    if settings.passphrase_command is not None:
        return "passphrase_command"
    return "passphrase_credential" if settings.passphrase_credential else "Whoever is asked for it"


@click.command("rotate", cls=Command)
@click.option(
    "--recovery-file",
    metavar="FILE",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="A new file (mode 0600) for the new recovery key.",
)
@click.option("--drop-others", is_flag=True, help="Also where other passphrases stop to open the repository.")
@click.option("--original-lost", is_flag=True, help="In a replica: what it is a replica of is gone for good.")
@click.pass_obj
def rotate(state: State, recovery_file: Path, drop_others: bool, original_lost: bool) -> None:
    """Begin with new keys: what is stored from now on cannot be read with a copy of the old ones.

    No pack is written again. The passphrase in use and a new recovery key open all; every other key stops to.
    """
    from vmbackup.cli import access
    from vmbackup.cli.output import say, say_json, warn
    from vmbackup.cli.recovery import recovery_file as new_file
    from vmbackup.repository import slots

    config = access.load_config(state)
    name, settings = access.named_repository(config, state.repository)
    with access.opened_with_secret(config, name) as (repository, secret):
        if (others := slots.others(repository)) and not drop_others:
            raise UsageError(
                f"other passphrases would open the repository no more: {_listed(others)}",
                "add --drop-others, and add them again afterwards with 'vmbackup key add'",
            )
        with new_file(recovery_file) as write:
            done = slots.rotate(
                repository,
                secret,
                lambda key: write(name, repository.id, settings.url, key),
                original_lost=original_lost,
            )
    if state.json:
        say_json(
            {
                "epoch": done.epoch,
                "key": {"id": done.slot},
                "recovery_key_file": str(recovery_file.absolute()),
                "removed": [{"id": s.id, "kind": s.kind, "label": s.label} for s in done.dropped],
                "deleted": not done.kept,
            }
        )
    else:
        say(f"Epoch {done.epoch} of the keys has begun. Wrote its recovery key to {recovery_file}:")
        say("keep it off this machine, then delete the file.")
        if done.dropped:
            say(f"These open the repository no more: {_listed(done.dropped)}.")
        say("What was stored before stays readable for whoever has a copy of the old keys.")
    for slot in done.kept:
        warn(_KEPT.format(slot))


def _listed(slots: "list[SlotInfo] | tuple[SlotInfo, ...]") -> str:
    return ", ".join(f"{s.id} ({s.kind}, {s.label})" for s in slots)
