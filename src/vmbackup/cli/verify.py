"""`vmbackup verify`: is all there that restore points need, and is it what it should be."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmbackup.cli.options import Command, State
from vmbackup.errors import NotFoundError, TargetError, UsageError

if TYPE_CHECKING:
    from vmbackup.config.models import Config
    from vmbackup.engine.care.findings import Damage
    from vmbackup.engine.care.verified import Verified
    from vmbackup.engine.care.verify import VerifySummary


class _Verify(Command):
    """--read-data takes its percentage after "=" only: the next word is a restore point."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, with the bare option spelled out."""
        return super().parse_args(ctx, [f"{a}=100" if a == "--read-data" else a for a in args])


@click.command("verify", cls=_Verify, short_help="Check the repository, on demand down to each byte.")
@click.argument("point", required=False)
@click.option("--read-data", metavar="[=PERCENT]", help="Read and authenticate the data too, or a share of it.")
@click.option(
    "--textfile",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write what is known now as Prometheus metrics, for node_exporter.",
)
@click.option("--last", is_flag=True, help="Only tell what the last verification on this host found.")
@click.pass_obj
def command(state: State, point: str | None, read_data: str | None, textfile: Path | None, last: bool) -> int:
    """Check that every object that restore points need exists, with its size: all points, or POINT.

    What was found damaged before is read again, whatever is asked for. With a key that reads no stored data (a
    writer's), data is compared with its checksums instead of being decoded.
    """
    share = _share(read_data)
    if last and (point is not None or share is not None):
        raise UsageError("--last reads nothing", "leave out POINT and --read-data, or --last")
    from vmbackup.cli import access

    config = access.load_config(state)
    name, _ = access.named_repository(config, state.repository)
    if last:
        kept = _recall(config, name)
        _say_last(state, kept)
    else:
        kept, found = _verify(state, config, name, point, share)
        _say(state, found, kept)
    if textfile is not None:
        from vmbackup.daemon.metrics import verified_exposition, write_textfile

        write_textfile(textfile.absolute(), verified_exposition(name, kept, _jobs(config, name, kept.domains)))
    if (kept if last else found).damaged:
        return 4
    return 3 if not last and (found.quarantined or found.doubtful or found.garbage) else 0


def _verify(
    state: State, config: "Config", name: str, point: str | None, share: float | None
) -> tuple["Verified", "VerifySummary"]:
    from vmbackup.cli import access
    from vmbackup.cli.output import warn
    from vmbackup.engine.care.verified import after, keep, known_damage, recall
    from vmbackup.engine.care.verify import verify
    from vmbackup.repository.resolve import resolve

    folder = config.daemon.state_dir
    with access.opened_repository(config, name) as repository:
        points = None if point is None else [resolve(repository.survey(live=True), point)]
        place = repository.config.repository.hex()
        before = recall(folder, name, place)
        with access.progress(state) as progress:
            found = verify(repository, points, share, progress, suspects=known_damage(before))
    kept = after(before, place, found, everything=point is None)
    try:
        keep(folder, name, kept)
    except TargetError as error:
        warn(f"the result is not kept: {error.message}")
    return kept, found


def _recall(config: "Config", name: str) -> "Verified":
    from vmbackup.engine.care.verified import recall

    kept = recall(config.daemon.state_dir, name)
    if kept is None:
        raise NotFoundError(
            f"this host has never verified repository {name}", f"run 'vmbackup --repository {name} verify'"
        )
    return kept


def _jobs(config: "Config", name: str, domains: Iterable[str]) -> dict[str, str]:
    """The job that backs up each domain into the repository; none for a domain that has no such job."""
    found: dict[str, str] = {}
    for job_name, job in config.jobs.items():
        if config.repository_of(job) == name:
            for domain in filter(job.means, domains):
                found.setdefault(domain, job_name)
    return found


def _share(percent: str | None) -> float | None:
    """A share of 1 out of a percentage."""
    if percent is None:
        return None
    try:
        number = float(percent.removesuffix("%"))
    except ValueError:
        number = 0.0
    if not 0 < number <= 100:
        raise UsageError(f"--read-data={percent} is not a percentage", "write --read-data, or --read-data=10")
    return number / 100


def _say(state: State, found: "VerifySummary", kept: "Verified") -> None:
    from vmbackup.cli.doubt import doubtful_document, warn_of_doubtful, warn_of_garbage
    from vmbackup.cli.output import say, say_json
    from vmbackup.cli.quarantine import quarantined_document, warn_of_quarantined

    if state.json:
        say_json(
            {
                "checked": {"points": found.points, "objects": found.objects, "bytes": found.bytes},
                "read": found.read,
                "share": found.share,
                "damaged": [damage.to_json() for damage in found.damaged],
                "known_damaged": len(kept.damaged),
                "quarantined": quarantined_document(found.quarantined),
                "doubtful": doubtful_document(found.doubtful),
                "garbage": [{"object": one.object, "problem": one.problem} for one in found.garbage],
            }
        )
        return
    for line in _text(found):
        say(line)
    warn_of_quarantined(found.quarantined)
    warn_of_doubtful(found.doubtful)
    warn_of_garbage(found.garbage)


def _say_last(state: State, kept: "Verified") -> None:
    from vmbackup.cli.output import say, say_json

    reading = kept.reading
    if state.json:
        say_json(
            {
                "time": kept.time and kept.time.isoformat(),
                "checked": {"points": kept.points, "objects": kept.objects, "bytes": kept.bytes},
                "read": reading and reading.how,
                "share": reading and reading.share,
                "read_time": reading and reading.time.isoformat(),
                "damaged": [damage.to_json() for damage in kept.damaged],
            }
        )
        return
    for line in _last_text(kept):
        say(line)


def suffering(damage: "Damage") -> list[str]:
    """The restore points that an object's damage spoils, with the disks."""
    disks = f" ({', '.join(damage.disks)})" if damage.disks else ""
    return [f"{point}{disks}" for point in damage.points]


def damage_lines(damaged: Iterable["Damage"]) -> list[str]:
    """Damaged objects, and below each who suffers."""
    from vmbackup.cli.output import clean, paint

    lines = []
    for damage in damaged:
        lines += [
            f"{paint('damaged', 'red')}  {clean(damage.object)}: {clean(damage.problem)}",
            *(f"         suffers: {clean(line)}" for line in suffering(damage)),
        ]
    return lines


def damage_total(damaged: Sequence["Damage"]) -> str:
    """Numbers of damaged objects and suffering points; "no damage" where there is none."""
    from vmbackup.cli.output import counted

    if not damaged:
        return "no damage"
    suffer = len({point for damage in damaged for point in damage.points})
    return f"damaged: {counted(len(damaged), 'object')}; suffering: {counted(suffer, 'restore point')}"


def _text(found: "VerifySummary") -> list[str]:
    from vmbackup.cli.output import counted
    from vmbackup.config.units import format_size

    numbers = f"{counted(found.points, 'restore point')}, {counted(found.objects, 'object')}"
    checked = f"{numbers}, {format_size(found.bytes)} checked"
    if found.read and found.share:
        checked += f", {_reading(found.read, found.share)}"
    joint = "; " if found.damaged else ": "
    return [*damage_lines(found.damaged), f"{checked}{joint}{damage_total(found.damaged)}"]


def _reading(how: str, share: float) -> str:
    """How much data was read, and how."""
    data = "all data" if share >= 1 else f"{share * 100:.3g} % of the data"
    return f"{data} decoded" if how == "decoded" else f"{data} compared with its checksums (this key cannot decode it)"


def _last_text(kept: "Verified") -> list[str]:
    from vmbackup.cli.output import local_time

    never = "never on this host"
    reading = kept.reading
    read = f"{local_time(reading.time)}, {_reading(reading.how, reading.share)}" if reading else never
    return [
        *damage_lines(kept.damaged),
        f"verified: {local_time(kept.time) if kept.time else never}",
        f"data read: {read}",
        damage_total(kept.damaged),
    ]
