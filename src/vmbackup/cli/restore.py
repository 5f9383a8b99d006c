"""`vmbackup restore`: the disks of a restore point, as new images or onto what is there."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from vmbackup.cli.define_options import DefineRequest, define_options, planned_guest
from vmbackup.cli.options import Command, State
from vmbackup.errors import UsageError

if TYPE_CHECKING:
    from vmbackup.config.models import Config
    from vmbackup.engine.restore.flat import RestoreOptions


@click.command("restore", cls=Command, short_help="Write the disks of a restore point as images.")
@click.argument("point", metavar="DOMAIN|POINT")
@click.option("--at", metavar="TIME", help="The newest point of DOMAIN at or before TIME, as 2026-11-24T03:00.")
@click.option(
    "--output",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where TARGET.qcow2 of each disk and domain.xml are written.",
)
@click.option(
    "--to",
    "existing",
    metavar="TARGET=PATH",
    multiple=True,
    help="Write this disk onto an image or block device that is there; again for more.",
)
@click.option("--disk", "disks", metavar="TARGET", multiple=True, help="Only this disk; again for more.")
@click.option(
    "--format",
    "image_format",
    type=click.Choice(("qcow2", "raw")),
    help="Of new images: qcow2 unless told. Of what --to names: a device is raw, a file what it is.",
)
@click.option(
    "--preallocation",
    type=click.Choice(("off", "metadata", "falloc", "full")),
    help="Space that new images take at once; as the original unless told, and raw ones are sparse.",
)
@click.option(
    "--luks-passphrase-file",
    "passphrase_files",
    metavar="[TARGET=]FILE",
    multiple=True,
    help="The passphrase for images that were encrypted, or for this disk's.",
)
@click.option("--plain", is_flag=True, help="Write what was encrypted so that anybody can read it.")
@click.option("--chain", is_flag=True, help="A backing chain: a base and an overlay for each later restore point.")
@click.option("--chain-from", metavar="POINT", help="The base of the chain; else the guest's oldest restore point.")
@click.option("--in-place", is_flag=True, help="Bring a stopped guest's own disks back, writing only what differs.")
@click.option("--keep-state", is_flag=True, help="With --in-place: first make a restore point of what is there.")
@click.option("--quick", is_flag=True, help="With --in-place: compare only what the image's bitmap calls changed.")
@click.option("--dry-run", is_flag=True, help="Tell what would be read, what it costs and how long; write nothing.")
@define_options
@click.pass_obj
def command(
    state: State,
    /,
    point: str,
    at: str | None,
    output: Path | None,
    existing: tuple[str, ...],
    disks: tuple[str, ...],
    image_format: Literal["qcow2", "raw"] | None,
    preallocation: Literal["off", "metadata", "falloc", "full"] | None,
    passphrase_files: tuple[str, ...],
    plain: bool,
    chain: bool,
    chain_from: str | None,
    in_place: bool,
    keep_state: bool,
    quick: bool,
    dry_run: bool,
    **define: Any,
) -> int:
    """Write the disks of a restore point to DIR: the newest of DOMAIN, or POINT.

    POINT is an id, a prefix of it, DOMAIN@latest or DOMAIN@TIME. No file is ever overwritten but what --to names.
    A restore that was interrupted is gone on with by the same command.
    """
    from vmbackup.cli import access
    from vmbackup.cli.disk_users import users_of
    from vmbackup.cli.restore_values import passphrases, targets
    from vmbackup.engine.restore.flat import RestoreOptions

    if at is not None and "@" in point:
        raise UsageError(
            "--at goes with the name of a domain", f"leave --at out, or write {point.split('@', maxsplit=1)[0]}"
        )
    name = f"{point}@{at}" if at is not None else point
    if in_place:
        if chain or any((chain_from, output, existing, image_format, preallocation, plain, *define.values())):
            raise UsageError("--in-place writes the guest's own disks as they are", "leave the other options out")
        wishes = {"keep_state": keep_state, "quick": quick, "dry_run": dry_run}
        return _in_place(state, name, disks, passphrase_files, wishes)
    other = bool(existing or preallocation or passphrase_files or plain)
    _check_chain(output, image_format, chain=chain, begin=chain_from, other=other)
    if keep_state or quick:
        raise UsageError("--keep-state and --quick go with --in-place", "add --in-place")
    if output is None and not existing:
        raise UsageError("nothing says where to restore to", "add --output DIR, --to TARGET=PATH, or --in-place")
    if output is None and preallocation:
        raise UsageError("--preallocation is for new images", "leave it out, or add --output DIR")
    if output is not None and not output.name and not output.is_absolute():
        raise UsageError("--output names no folder", "write the path of one, as in --output /var/tmp/restored")
    request = DefineRequest.of(define)
    config = access.load_config(state)
    options = RestoreOptions(
        output.absolute() if output else None,
        image_format,
        disks or None,
        preallocation=preallocation,
        passphrases=passphrases(passphrase_files),
        plain=plain,
    )
    if existing:
        options = options.onto(targets(existing), users_of(config, state), config.daemon.state_dir)
    if chain:
        return _chain(state, config, name, chain_from, options, request, dry_run=dry_run)
    return _run(state, config, name, options, request, dry_run=dry_run)


def _in_place(
    state: State, name: str, disks: tuple[str, ...], passphrase_files: tuple[str, ...], wishes: dict[str, bool]
) -> int:
    from vmbackup.cli import access, restore_in_place
    from vmbackup.cli.restore_values import passphrases
    from vmbackup.engine.restore.in_place import InPlaceOptions

    options = InPlaceOptions(disks or None, **wishes, passphrases=passphrases(passphrase_files))
    return restore_in_place.run(state, access.load_config(state), name, options)


def _check_chain(output: Path | None, image_format: str | None, *, chain: bool, begin: str | None, other: bool) -> None:
    """Whether the options go with --chain. UsageError."""
    if begin is not None and not chain:
        raise UsageError("--chain-from goes with --chain", "add --chain")
    if chain and image_format == "raw":
        raise UsageError("a raw image has no backing file", "leave --format out, or --chain")
    if chain and output is None:
        raise UsageError("--chain makes new images", "add --output DIR")
    if chain and other:
        with_it = "--output, --disk, --chain-from and --dry-run"
        raise UsageError(f"--chain goes with {with_it} only", "leave the other options out")


def _chain(
    state: State,
    config: "Config",
    name: str,
    begin: str | None,
    options: "RestoreOptions",
    request: DefineRequest | None,
    *,
    dry_run: bool,
) -> int:
    from vmbackup.cli import access
    from vmbackup.cli.restore_chain import points_of, show
    from vmbackup.cli.restore_cost import tell_cost
    from vmbackup.engine.restore.chained import ChainOptions, chain_cost, restore_chain
    from vmbackup.engine.restore.speed import SpeedMemory
    from vmbackup.repository.resolve import resolve

    with access.opened_repository(config, state.repository) as repository:
        points = repository.survey()
        found = resolve(points, name, domains=True)
        wanted = ChainOptions(options.output or Path(), options.disks)
        chosen = points_of(points, found, begin)
        with planned_guest(request, config, repository, found, options) as planned:
            if dry_run:
                _, settings = access.named_repository(config, state.repository)
                speed = SpeedMemory(config.daemon.state_dir).of(repository.config.repository)
                foreseen = chain_cost(repository, chosen, wanted)
                return tell_cost(state, found, foreseen, settings, speed, planned)
            with access.progress(state) as progress:
                made = restore_chain(repository, chosen, wanted, progress)
            guest = planned.carry_out() if planned else None
    return show(made, found, guest, json=state.json)


def _run(
    state: State,
    config: "Config",
    name: str,
    options: "RestoreOptions",
    request: DefineRequest | None,
    *,
    dry_run: bool,
) -> int:
    from vmbackup.cli import access
    from vmbackup.cli.restore_cost import tell_cost
    from vmbackup.cli.restore_result import tell
    from vmbackup.engine.restore.flat import restore
    from vmbackup.engine.restore.forecast import forecast
    from vmbackup.engine.restore.speed import SpeedMemory
    from vmbackup.repository.resolve import resolve

    with access.opened_repository(config, state.repository) as repository:
        found = resolve(repository.survey(), name, domains=True)
        memory = SpeedMemory(config.daemon.state_dir)
        with planned_guest(request, config, repository, found, options) as planned:
            if dry_run:
                _, settings = access.named_repository(config, state.repository)
                speed = memory.of(repository.config.repository)
                return tell_cost(state, found, forecast(repository, found, options), settings, speed, planned)
            with access.progress(state) as progress:
                done = restore(repository, found, options, progress)
            guest = planned.carry_out() if planned else None
        fetched = sum(file.fetched_bytes for file in done.files)
        memory.remember(repository.config.repository, fetched, done.duration_seconds)
    return tell(state, found, done, guest)
