"""`vmbackup restore`: the disks of a restore point, as images."""

from pathlib import Path
from typing import Literal

import click

from vmbackup.cli.options import Command, State
from vmbackup.errors import UsageError


@click.command("restore", cls=Command, short_help="Write the disks of a restore point as images.")
@click.argument("point", metavar="DOMAIN|POINT")
@click.option("--at", metavar="TIME", help="The newest point of DOMAIN at or before TIME, as 2026-11-24T03:00.")
@click.option(
    "--output",
    metavar="DIR",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where TARGET.qcow2 of each disk and domain.xml are written.",
)
@click.option("--disk", "disks", metavar="TARGET", multiple=True, help="Only this disk; again for more.")
@click.option("--format", "image_format", type=click.Choice(("qcow2", "raw")), default="qcow2", show_default=True)
@click.option("--chain", is_flag=True, help="A backing chain: a base and an overlay for each later restore point.")
@click.option("--chain-from", metavar="POINT", help="The base of the chain; else the guest's oldest restore point.")
@click.pass_obj
def command(
    state: State,
    point: str,
    at: str | None,
    output: Path,
    disks: tuple[str, ...],
    image_format: Literal["qcow2", "raw"],
    chain: bool,
    chain_from: str | None,
) -> int:
    """Write the disks of a restore point to DIR: the newest of DOMAIN, or POINT.

    POINT is an id, a prefix of it, DOMAIN@latest or DOMAIN@TIME. No file is ever overwritten.
    """
    from vmbackup.cli import access, restore_chain
    from vmbackup.cli.output import clean, say, say_json, table, warn
    from vmbackup.config.units import format_duration, format_size
    from vmbackup.engine.restore import RestoreOptions, restore
    from vmbackup.engine.restore_chain import ChainOptions
    from vmbackup.repository.resolve import resolve

    if at is not None and "@" in point:
        raise UsageError(
            "--at goes with the name of a domain", f"leave --at out, or write {point.split('@', maxsplit=1)[0]}"
        )
    if not output.name and not output.is_absolute():
        raise UsageError("--output names no folder", "write the path of one, as in --output /var/tmp/restored")
    if chain_from is not None and not chain:
        raise UsageError("--chain-from goes with --chain", "add --chain")
    if chain and image_format != "qcow2":
        raise UsageError("a raw image has no backing file", "leave --format out, or --chain")
    options = RestoreOptions(output.absolute(), image_format, disks or None)
    config = access.load_config(state)
    with access.opened_repository(config, state.repository) as repository:
        name = f"{point}@{at}" if at is not None else point
        points = repository.survey()
        found = resolve(points, name, domains=True)
        with access.progress(state) as progress:
            if chain:
                wanted = ChainOptions(options.output, options.disks)
                made = restore_chain.restore(repository, points, found, chain_from, wanted, progress)
                return restore_chain.show(made, found.domain, json=state.json)
            done = restore(repository, found, options, progress)
    if state.json:
        files = [
            {
                "target": file.target,
                "path": str(file.path),
                "format": file.format,
                "virtual_size": file.virtual_size,
                "written_bytes": file.written_bytes,
            }
            for file in done.files
        ]
        duration = round(done.duration_seconds, 3)
        warnings = list(done.warnings)
        say_json({"point": done.point, "files": files, "duration_seconds": duration, "warnings": warnings})
        return 3 if warnings else 0
    rows = [
        (f.target, str(f.path), f.format, format_size(f.virtual_size), format_size(f.written_bytes)) for f in done.files
    ]
    say(f"{clean(found.domain)} as of {done.point}, in {format_duration(done.duration_seconds)}:")
    say(table(("DISK", "FILE", "FORMAT", "SIZE", "WRITTEN"), rows, right=("SIZE", "WRITTEN")))
    for warning in done.warnings:
        warn(warning)
    return 3 if done.warnings else 0
