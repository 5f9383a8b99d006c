"""`vmbackup repair`: records what is damaged and heals what can be healed; deletes nothing."""

from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from vmbackup.cli.options import Command, State
from vmbackup.errors import TargetError, UsageError

if TYPE_CHECKING:
    from vmbackup.config.models import Config
    from vmbackup.engine.care.repair import RepairSummary
    from vmbackup.engine.care.verified import Verified
    from vmbackup.repository.repository import Repository

# What to do about damage that stays, by the folder of the object.
_ADVICE = {
    "data": "data: if the guest still has it, its next backup reads it again; then run repair once more. Else repair\n"
    "  with --from a replica, or forget the restore points that suffer.",
    "meta": "meta: maps are nowhere else. The next backup reads the guest whole. For older restore points repair with\n"
    "  --from a replica; what suffers then can be restored from the replica only, or forgotten.",
    "index": "index: nobody tells any more what its packs hold. Restore points that suffer can be restored from a\n"
    "  replica only, or forgotten.",
    "points": "points: repair with --from a replica that has a copy, or forget it by its 8 digits.",
    "table": "points: a lost table of moves is made again once all that was read through it is found: repair with\n"
    "  --from a replica, or forget the restore points that suffer, never the table; then run repair once more.",
    "keys": "keys: the slot opens nothing any more. Make another ('vmbackup key add' or 'key export-recovery').",
}
_MARKS = ("sessions", "trash", "dead", "condemned", "damage")
_MARKS_ADVICE = (
    "Pins, tombstones, lists and records hold no data. Forget again what a lost tombstone named; then delete the\n"
    "  objects named here, while no prune runs."
)
_OTHERS = "Other objects: put them back with --from a replica that has them."


@click.command("repair", cls=Command, short_help="Heal what is damaged, as far as it can be.")
@click.option("--from", "replica", metavar="NAME", help="Look for lost data in this repository of the same realm too.")
@click.option("--read-data", is_flag=True, help="Look at every byte first, as 'verify --read-data' does.")
@click.option("--dry-run", is_flag=True, help="Only tell what is damaged, and what could be healed.")
@click.pass_obj
def command(state: State, replica: str | None, read_data: bool, dry_run: bool) -> int:
    """Record what is damaged and heal it from wherever it is whole. Nothing is deleted or overwritten.

    Sizes are looked at, and what any verify has found before is read again. Lost chunks are looked for in the
    damaged objects themselves, in the rest of the repository (the next backup after the damage has stored them again,
    if the guest still had them) and in the repository --from.
    """
    from vmbackup.cli import access
    from vmbackup.engine.care.repair import RepairOptions, repair
    from vmbackup.engine.care.verified import known_damage, recall

    config = access.load_config(state)
    name, _ = access.named_repository(config, state.repository)
    with ExitStack() as stack:
        repository = stack.enter_context(access.opened_repository(config, name))
        other = _replica(stack, config, repository, name, replica) if replica else None
        before = recall(config.daemon.state_dir, name, repository.config.repository.hex())
        options = RepairOptions(read_data, other, dry_run)
        with access.progress(state) as progress:
            done = repair(repository, options, progress, suspects=known_damage(before))
        if not dry_run:
            _keep(config, name, repository, before, done)
    _say(state, done, dry_run=dry_run)
    return 4 if done.last.damaged else 3 if done.last.garbage else 0


def _replica(stack: ExitStack, config: "Config", repository: "Repository", own: str, name: str) -> "Repository":
    from vmbackup.cli import access

    name, _ = access.named_repository(config, name)
    if name == own:
        raise UsageError("a repository cannot be repaired from itself", "name its replica with --from")
    replica = stack.enter_context(access.opened_repository(config, name))
    if replica.config.realm != repository.config.realm:
        raise UsageError(
            f"repository {name} shares no keys with {own}: its chunks cannot be compared",
            "name a replica, made by 'vmbackup init --replica-of'",
        )
    return replica


def _keep(
    config: "Config", name: str, repository: "Repository", before: "Verified | None", done: "RepairSummary"
) -> None:
    """A repair has looked at everything, twice where it healed something."""
    from vmbackup.cli.output import warn
    from vmbackup.engine.care.verified import after, keep

    place = repository.config.repository.hex()
    try:
        keep(config.daemon.state_dir, name, after(after(before, place, done.first), place, done.last))
    except TargetError as error:
        warn(f"the result is not kept: {error.message}")


def _say(state: State, done: "RepairSummary", *, dry_run: bool) -> None:
    from vmbackup.cli.doubt import warn_of_garbage
    from vmbackup.cli.output import say, say_json

    if state.json:
        say_json(
            {
                "checked": {"points": done.last.points, "objects": done.last.objects, "bytes": done.last.bytes},
                "damaged": [damage.to_json() for damage in done.first.damaged],
                "healed": [asdict(healing) for healing in done.healed],
                "remaining": [damage.to_json() for damage in done.last.damaged],
                "garbage": [asdict(one) for one in done.last.garbage],
                "dry_run": dry_run,
            }
        )
        return
    for line in _text(done, dry_run=dry_run):
        say(line)
    warn_of_garbage(done.last.garbage)


def _text(done: "RepairSummary", *, dry_run: bool) -> list[str]:
    from vmbackup.cli.output import clean, counted, paint
    from vmbackup.cli.verify import damage_lines, damage_total

    if not done.first.damaged:
        return [f"{counted(done.first.points, 'restore point')} looked at: no damage"]
    lines = damage_lines(done.first.damaged)
    did = "could be healed" if dry_run else "healed"
    for healing in done.healed:
        label = paint(did, "green") if healing.complete else paint(f"{did} in part", "yellow")
        lines.append(f"{label}  {clean(healing.object)}: {clean(healing.how)}")
    remaining = done.last.damaged
    if not remaining:
        return [*lines, "all that restore points need is whole again"]
    if dry_run:
        return [*lines, damage_total(remaining)]
    if done.healed:
        lines += ["", "What remains:", *damage_lines(remaining)]
    folders = {"table" if damage.is_table else damage.object.partition("/")[0] for damage in remaining}
    lines += ["", damage_total(remaining), *(text for folder, text in _ADVICE.items() if folder in folders)]
    lines += [_MARKS_ADVICE] if folders & {*_MARKS} else []
    return [*lines, _OTHERS] if folders - _ADVICE.keys() - {*_MARKS} else lines
