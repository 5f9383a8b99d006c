"""`restore --dry-run`: what would be read, what that costs, and how long it will take."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vmbackup.cli.options import State
from vmbackup.cli.output import clean, counted, say, say_json, table

if TYPE_CHECKING:
    from vmbackup.cli.define_options import PlannedGuest
    from vmbackup.config.models import Repository as Settings
    from vmbackup.engine.restore.cost import Cost, Foreseen
    from vmbackup.engine.restore.speed import Speed
    from vmbackup.repository.points import Point


def tell_cost(
    state: State,
    point: "Point",
    foreseen: "Sequence[Foreseen]",
    settings: "Settings",
    speed: "Speed | None",
    guest: "PlannedGuest | None" = None,
) -> int:
    """Prints it; gives the exit code."""
    from vmbackup.engine.restore.cost import Cost
    from vmbackup.repository.records import FileRecord

    total = sum((each.cost for each in foreseen), Cost())
    document = {
        "point": point.id,
        "dry_run": True,
        "store": settings.url,
        "disks": [_disk(each) for each in foreseen if not isinstance(each.disk, FileRecord)],
        "boot_files": [
            _disk(each) | {"kind": each.disk.kind} for each in foreseen if isinstance(each.disk, FileRecord)
        ],
        "read_bytes": total.read_bytes,
        "requests": total.requests,
        "egress": _egress(settings, total),
        "bytes_per_second": speed.bytes_per_second if speed else None,
        "measured": speed.time if speed else None,
        "seconds": round(speed.seconds(total.data_bytes), 1) if speed else None,
    }
    if state.json:
        say_json(document | ({"domain": guest.document()} if guest else {}))
        return 0
    _say(point, document, foreseen)
    for line in guest.lines() if guest else ():
        say(clean(line))
    return 0


def _disk(each: "Foreseen") -> dict[str, Any]:
    return {
        "target": each.disk.target,
        "point": each.point.id,
        "virtual_size": each.disk.virtual_size,
        "data_bytes": each.cost.data_bytes,
        "read_bytes": each.cost.read_bytes,
        "requests": each.cost.requests,
        "path": str(each.path),
        "backing": each.backing,
    }


def _egress(settings: "Settings", total: "Cost") -> dict[str, Any] | None:
    """What leaving the provider costs; null where nobody told a price, and for a folder."""
    from vmbackup.config.stores import egress_price_of

    price = egress_price_of(settings)
    if price is None:
        return None
    return {
        "provider": settings.provider,
        "price_per_gb": price.per_gb,
        "currency": price.currency,
        "cost": round(price.of(total.read_bytes), 4),
    }


def _say(point: "Point", document: dict[str, Any], foreseen: "Sequence[Foreseen]") -> None:
    from vmbackup.config.units import format_size

    rows = [
        (each.disk.target, str(each.path), format_size(each.disk.virtual_size), format_size(each.cost.data_bytes),
         format_size(each.cost.read_bytes), str(each.cost.requests))
        for each in foreseen
    ]  # fmt: skip
    say(f"{clean(point.domain)} as of {point.id} would be restored; nothing was written:")
    titles = ("DISK", "FILE", "SIZE", "DATA", "READ", "REQUESTS")
    say(table(titles, rows, right=("SIZE", "DATA", "READ", "REQUESTS")))
    say(f"reads about {format_size(document['read_bytes'])} by {counted(document['requests'], 'request')}")
    say(_price(document))
    say(_time(document))


def _price(document: dict[str, Any]) -> str:
    egress = document["egress"]
    if egress is None and not document["store"].startswith("s3://"):
        return "costs nothing: it is read from a folder"
    if egress is None:
        return "what reading costs there is not known: set egress_price if the provider charges for it"
    whose = f" at {egress['provider']}" if egress["provider"] else ""
    rate = f"{egress['price_per_gb']:g} {egress['currency']} a GB"
    return f"costs up to {egress['cost']:.2f} {egress['currency']}{whose}, at {rate} beyond any free traffic"


def _time(document: dict[str, Any]) -> str:
    from vmbackup.config.units import format_duration, format_size

    if document["seconds"] is None:
        return "how long: not known, no restore from this repository was measured on this host yet"
    rate = f"{format_size(int(document['bytes_per_second']))}/s"
    return f"takes about {format_duration(document['seconds'])}, at the {rate} measured until {document['measured']}"
