"""What is told of the guests that were backed up at one instant (`consistency_group`)."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmbackup.repository.summary import PointSummary

_SHOWN = 8  # hex digits of a group's id, in tables


def present(points: Iterable["PointSummary"]) -> frozenset[tuple[str, str]]:
    """The points that are there, as their groups name them: UUID and short id."""
    return frozenset((point.domain_uuid, point.id.rpartition("-")[2][:8]) for point in points)


def group_document(group: Mapping[str, Any] | None, there: frozenset[tuple[str, str]]) -> dict[str, Any] | None:
    """A point's group in JSON; `complete`: no guest failed, and the point of each is there."""
    if group is None:
        return None
    members = [
        {
            "domain": member["name"],
            "domain_uuid": member["uuid"],
            "point": _short(member),
            "present": (member["uuid"], _short(member)) in there,
        }
        for member in group["members"]
    ]
    failed = [{"domain": f["name"], "domain_uuid": f["uuid"], "error": f["error"]} for f in group["failed"]]
    whole = not failed and all(member["present"] for member in members)
    told = {"id": group["id"], "job": group["job"], "instant": group["instant"]}
    return {**told, "complete": whole, "members": members, "failed": failed}


def group_column(group: Mapping[str, Any] | None, there: frozenset[tuple[str, str]]) -> str:
    """For a table: which group, and how much of it is there where that is not all."""
    document = group_document(group, there)
    if document is None:
        return ""
    members = document["members"]
    count, total = sum(member["present"] for member in members), len(members) + len(document["failed"])
    return str(document["id"])[:_SHOWN] + ("" if document["complete"] else f" ({count} of {total})")


def group_facts(group: Mapping[str, Any] | None, there: frozenset[tuple[str, str]]) -> list[tuple[str, str]]:
    """For `show`: who is of it, and who is missing."""
    document = group_document(group, there)
    if document is None:
        return []
    here = [f"{m['domain']} ({m['point']})" for m in document["members"] if m["present"]]
    lost = [f"{m['domain']} ({m['point']}): its point is gone" for m in document["members"] if not m["present"]]
    lost += [f"{f['domain']}: it failed: {f['error']}" for f in document["failed"]]
    instant = "one instant" if document["instant"] else "not quite one instant"
    facts = [("group", f"{document['id'][:_SHOWN]} of job {document['job']}, {instant}: {', '.join(here)}")]
    return facts + [("not in group", each) for each in lost]


def _short(member: Mapping[str, Any]) -> str:
    from vmbackup.repository.layout import short_id

    return short_id(bytes.fromhex(member["session"]))
