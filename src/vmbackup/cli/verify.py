"""`vmbackup verify`: is all there that restore points need, and is it what it should be."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from vmbackup.cli.options import Command, State
from vmbackup.errors import UsageError

if TYPE_CHECKING:
    from vmbackup.engine.verify import Damage, VerifySummary


class _Verify(Command):
    """--read-data takes its percentage after "=" only: the next word is a restore point."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, with the bare option spelled out."""
        return super().parse_args(ctx, [f"{a}=100" if a == "--read-data" else a for a in args])


@click.command("verify", cls=_Verify, short_help="Check the repository, on demand down to each byte.")
@click.argument("point", required=False)
@click.option("--read-data", metavar="[=PERCENT]", help="Read and authenticate the data too, or a share of it.")
@click.pass_obj
def command(state: State, point: str | None, read_data: str | None) -> int:
    """Check that every object that restore points need exists, with its size: all points, or POINT."""
    share = _share(read_data)
    from vmbackup.cli import access
    from vmbackup.cli.output import say, say_json
    from vmbackup.engine.verify import verify
    from vmbackup.repository.resolve import resolve

    config = access.load_config(state)
    with access.opened_repository(config, state.repository) as repository:
        points = None if point is None else [resolve(repository.survey(), point)]
        with access.progress(state) as progress:
            found = verify(repository, points, share, progress)
    if state.json:
        say_json(_document(found))
    else:
        for line in _text(found):
            say(line)
    return 4 if found.damaged else 0


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


def _document(found: "VerifySummary") -> dict[str, object]:
    return {
        "checked": {"points": found.points, "objects": found.objects, "bytes": found.bytes},
        "damaged": [
            {"object": d.object, "problem": d.problem, "points": list(d.points), "disks": list(d.disks)}
            for d in found.damaged
        ],
    }


def _suffering(damage: "Damage") -> list[str]:
    """The restore points that an object's damage spoils, with the disks."""
    disks = f" ({', '.join(damage.disks)})" if damage.disks else ""
    return [f"{point}{disks}" for point in damage.points]


def _text(found: "VerifySummary") -> Sequence[str]:
    from vmbackup.cli.output import clean, counted, paint
    from vmbackup.config.units import format_size

    lines = []
    for damage in found.damaged:
        lines += [
            f"{paint('damaged', 'red')}  {clean(damage.object)}: {clean(damage.problem)}",
            *(f"         suffers: {clean(line)}" for line in _suffering(damage)),
        ]
    checked = (
        f"{counted(found.points, 'restore point')}, {counted(found.objects, 'object')}, {format_size(found.bytes)}"
    )
    if found.damaged:
        suffer = len({point for damage in found.damaged for point in damage.points})
        told = f"damaged: {counted(len(found.damaged), 'object')}; suffering: {counted(suffer, 'restore point')}"
        lines.append(f"{checked} checked; {told}")
    else:
        lines.append(f"{checked} checked: no damage")
    return lines
