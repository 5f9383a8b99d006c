"""`vmbackup info`: a repository at a glance."""

from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Any

import click

from vmbackup.cli.options import Command, State

if TYPE_CHECKING:
    from vmbackup.engine.care.verified import Verified
    from vmbackup.repository.drills import Drill
    from vmbackup.repository.layout import Lineage
    from vmbackup.repository.points import Point
    from vmbackup.repository.repository import PointList, Repository
    from vmbackup.storage_backends import Store


@click.command("info", cls=Command, short_help="Tell what is in the repository.")
@click.option("--sizes", is_flag=True, help="Count what is stored too: lists every object.")
@click.pass_obj
def command(state: State, sizes: bool) -> int:
    """Tell what is in the repository: guests with their restore points, what is damaged, when it was verified.

    The exit code is 4 where something is known to be damaged, 3 where a revoked key made restore points since.
    """
    from vmbackup.cli import access
    from vmbackup.cli.output import say_json
    from vmbackup.engine.care.forget import known_damaged
    from vmbackup.engine.care.verified import recall
    from vmbackup.repository import drills
    from vmbackup.repository.quarantine import quarantined

    config = access.load_config(state)
    name, settings = access.named_repository(config, state.repository)
    with access.opened_repository(config, name) as repository:
        found = repository.survey()
        verified = recall(config.daemon.state_dir, name, repository.config.repository.hex())
        suffer = {damaged for one in verified.damaged for damaged in one.points} if verified else set()
        known = known_damaged(repository, found.points, suffer)
        guests = _guests(found.points, known, drills.every(repository))
        about = {
            "name": name,
            "id": repository.id,
            "url": settings.url,
            "points": len(found.points),
            "guests": len(guests),
            "damaged_objects": len(_damaged(repository, found, verified)),
            "quarantined": len(quarantined(repository, found)),
        }
        counted = _sizes(repository.store) if sizes else None
    document = {"repository": about, "sizes": counted, "verified": _verified(verified), "guests": guests}
    if state.json:
        say_json(document)
    else:
        _say(document)
    return 4 if about["damaged_objects"] else 3 if about["quarantined"] else 0


def _guests(
    points: "Sequence[Point]", damaged: "Container[bytes]", drilled: "Sequence[Drill]"
) -> list[dict[str, Any]]:
    """By their newest names; `points` are newest first, `damaged` the sessions of those that cannot be restored."""
    histories: dict[str, list[Point]] = {}
    for point in points:
        histories.setdefault(point.uuid, []).append(point)
    guests = [
        {
            "domain": history[0].domain,
            "domain_uuid": uuid,
            "host": history[0].public.get("host", ""),
            "drill": _drills(drilled, {point.lineage for point in history}),
            "points": [{**_point(point), "damaged": point.session in damaged} for point in history],
        }
        for uuid, history in histories.items()
    ]
    return sorted(guests, key=lambda guest: (guest["domain"], guest["domain_uuid"]))


def _drills(drilled: "Sequence[Drill]", histories: "Container[Lineage]") -> dict[str, Any]:
    """The last one of a guest, and the last one that succeeded; `drilled` are newest first."""
    from vmbackup.cli.drills import drill_document

    own = [drill for drill in drilled if drill.lineage in histories]
    good = next((drill for drill in own if drill.seen.success), None)
    return {"last": drill_document(own[0]) if own else None, "last_success": drill_document(good) if good else None}


def _point(point: "Point") -> dict[str, Any]:
    """A few of the fields that `list` tells: none that takes looking at disks."""
    public = point.public
    return {
        "id": point.id,
        "time": point.time.isoformat(),
        "status": "warning" if public.get("warnings") else "success",
        "consistency": public.get("consistency", ""),
        "freeze_seconds": public.get("freeze_seconds"),
        "quiesce_note": public.get("quiesce_note"),
        "copied_from": point.copied_from["repository"][:8] if point.copied_from else None,
    }


def _damaged(repository: "Repository", found: "PointList", verified: "Verified | None") -> set[str]:
    """Objects known to be damaged: to this host's last verify, else by anyone's records; and points just found so."""
    from vmbackup.repository import damage

    now = {error.object_key or error.message for error in found.damaged}
    if verified is not None:
        return now | {known.object for known in verified.damaged}
    recorded = {
        name.key(group) for group in repository.groups() for name in damage.read(repository.store, group).values()
    }
    return now | recorded


def _verified(kept: "Verified | None") -> dict[str, Any] | None:
    if kept is None or kept.time is None:
        return None
    time = kept.time.isoformat()
    return {"time": time, "domains": dict.fromkeys(kept.domains, time)}


def _sizes(store: "Store") -> dict[str, int]:
    """Of all objects in the place."""
    n_bytes = objects = 0
    for entry in store.list(""):
        n_bytes, objects = n_bytes + entry.size, objects + 1
    return {"bytes": n_bytes, "objects": objects}


def _say(document: dict[str, Any]) -> None:
    from vmbackup.cli.output import counted, facts, say, table, warn
    from vmbackup.config.units import format_size

    about, sizes, verified = document["repository"], document["sizes"], document["verified"]
    pairs = [
        ("repository", f"{about['name']} ({about['id']})"),
        ("place", about["url"]),
        ("holds", f"{counted(about['points'], 'restore point')} of {counted(about['guests'], 'guest')}"),
    ]
    if sizes:
        pairs.append(("stored", f"{format_size(sizes['bytes'])} in {counted(sizes['objects'], 'object')}"))
    pairs.append(("verified", _local(verified["time"]) if verified else "never on this host"))
    say(facts(pairs))
    if document["guests"]:
        say()
        say(
            table(
                ("GUEST", "POINTS", "NEWEST", "OLDEST", "CONSISTENCY"), map(_row, document["guests"]), right=("POINTS",)
            )
        )
    if about["damaged_objects"]:
        warn(f"{counted(about['damaged_objects'], 'object')} known to be damaged: 'vmbackup verify' names who suffers")
    if about["quarantined"]:
        warn(f"{about['quarantined']} in quarantine: 'vmbackup list' names them")


def _row(guest: dict[str, Any]) -> Sequence[str]:
    points = guest["points"]
    newest = points[0]
    times = (_local(point["time"]) for point in (newest, points[-1]))
    return (guest["domain"], str(len(points)), *times, newest["consistency"])


def _local(time: str) -> str:
    from datetime import datetime

    from vmbackup.cli.output import local_time

    return local_time(datetime.fromisoformat(time), seconds=False)
