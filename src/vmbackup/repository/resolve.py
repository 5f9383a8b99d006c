"""From what people write to one restore point: an id, a prefix, DOMAIN@latest, DOMAIN@TIME."""

import difflib
import re
from collections.abc import Sequence
from datetime import datetime, timedelta

from vmbackup.errors import AccessError, DamageError, NotFoundError, UsageError
from vmbackup.repository.layout import SESSION_BYTES, Lineage, short_id
from vmbackup.repository.points import POINT, Point
from vmbackup.repository.repository import PointList, newest

_MOST_CANDIDATES = 8  # of an ambiguous name: more are counted, not listed
_POINT = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{1,20}")
_TIME_BYTES = 6  # of a session; its random digits follow
_DATE = re.compile(r"\d{4}-?\d{2}-?\d{2}")


def resolve(found: PointList, text: str, *, domains: bool = False) -> Point:
    """The restore point that `text` names; with `domains` the bare name of a domain is its newest point.

    Raises UsageError (ambiguous, with the candidates; no time), NotFoundError, and DamageError where a point that
    cannot be read is meant, or would be newer than the one that can.
    """
    name, at, when = text.rpartition("@")
    if at and not (domains and any(text == point.domain for point in found.points)):
        moment = None if when == "latest" else parse_time(when)
        return _of_domain(found, name, moment)
    matches = [point for point in found.points if _is_named(point, text)]
    named = domains and any(text in (point.domain, point.uuid) for point in found.points)
    if named and matches:
        hint = f"write {text}@latest for the domain, or more of: {_listed([found.name(p) for p in matches])}"
        raise UsageError(f"'{text}' names a domain and a restore point", hint)
    if named:
        return _of_domain(found, text, None)
    if len(matches) > 1:
        hint = f"write more of it: {_listed([found.name(p) for p in matches])}"
        raise UsageError(f"'{text}' names {len(matches)} restore points", hint)
    if matches:
        return matches[0]
    raise _nothing(found, text, domains=domains)


def parse_time(text: str) -> datetime:
    """A moment in ISO 8601, in local time where it has no offset; a date alone is the end of that day. UsageError."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        hint = "write it like 2026-11-24T03:00 or 2026-11-24T03:00+01:00, or 'latest'"
        raise UsageError(f"'{text}' is not a time", hint) from None
    if _DATE.fullmatch(text):
        moment += timedelta(days=1, microseconds=-1)
    return moment.astimezone()


def _is_named(point: Point, text: str) -> bool:
    """Whether `text` is a prefix of the point's id or of its digits, as far as its session goes, or its key."""
    point_id = point.long_id if point.kind == POINT else ""
    digits = point.session[_TIME_BYTES:].hex()
    return bool(text) and (point_id.startswith(text) or digits.startswith(text.lower()) or text == point.key)


def _of_domain(found: PointList, name: str, moment: datetime | None) -> Point:
    """The newest point of a domain, at or before `moment` if there is one."""
    points = [point for point in found.points if name in (point.domain, point.uuid)]
    uuids = list(dict.fromkeys(point.uuid for point in points))
    if len(uuids) > 1:
        hint = f"write the UUID of one: {_listed([f'{uuid}@latest' for uuid in uuids])}"
        raise UsageError(f"{len(uuids)} guests are called '{name}'", hint)
    if not points:
        raise _nothing(found, name, domains=True)
    candidates = [point for point in points if moment is None or point.time <= moment]
    point = newest(candidates)
    _refuse_unread(found, points, point, moment)
    if point is None:
        first = min(points, key=lambda p: p.time)
        raise NotFoundError(f"'{name}' has no restore point that old", f"its first is {first.id}")
    return point


def _refuse_unread(found: PointList, points: Sequence[Point], chosen: Point | None, moment: datetime | None) -> None:
    """DamageError if the domain has an unreadable point that would be the answer: an older one is not what is meant."""
    lineages = {point.lineage for point in points}
    for error in found.damaged:
        place = place_of(error)
        if place is None or place[0] not in lineages:
            continue
        session = place[1]
        if chosen is not None and session < chosen.session:
            continue
        if moment is not None and int.from_bytes(session[:6], "big") > moment.timestamp() * 1000:
            continue
        hint = f"the newest that can be read is {chosen.id}: name it to use it" if chosen else ""
        message = f"a newer restore point of '{points[0].domain}', {short_id(session)}, cannot be read: {error.message}"
        raise DamageError(message, hint, object_key=error.object_key)


def _nothing(found: PointList, text: str, *, domains: bool) -> Exception:
    """Why nothing was found: damage, if it may hide what was meant."""
    if in_quarantine(found, text):
        return AccessError(
            f"'{text}' is in quarantine: the key that signed it was revoked",
            "'vmbackup list' tells more; name another restore point",
        )
    for error in found.damaged:
        place = place_of(error)
        if place is not None and text and short_id(place[1]).startswith(text.lower().rpartition("-")[2]):
            return error
    names = sorted({point.domain for point in found.points})
    if text in names:
        return NotFoundError(f"'{text}' is a domain, not a restore point", f"write {text}@latest for its newest")
    if domains and found.damaged:
        message = f"there is no readable restore point of '{text}', and {len(found.damaged)} are damaged"
        return DamageError(message, object_key=found.damaged[0].object_key)
    near = difflib.get_close_matches(text, names, n=1, cutoff=0.6) if domains else []
    hint = f"did you mean '{near[0]}'?" if near else "'vmbackup list' shows what there is"
    what = "restore point of a domain" if domains and not _POINT.fullmatch(text) else "restore point"
    return NotFoundError(f"there is no {what} '{text}'", hint)


def in_quarantine(found: PointList, text: str) -> Point | None:
    """The one commit in quarantine that `text` names; None where it names none. Raises UsageError (ambiguous)."""
    matches = [point for point in found.quarantined if _is_named(point, text)]
    if named := [point for point in found.points if _is_named(point, text)]:
        if matches:
            hint = f"write more of it: {_listed([found.name(p) for p in (*named, *matches)])}"
            raise UsageError(f"'{text}' names a restore point and something in quarantine", hint)
        return None
    if len(matches) > 1:
        raise UsageError(f"'{text}' names {len(matches)} things in quarantine", "'vmbackup list' shows them")
    return matches[0] if matches else None


def place_of(error: DamageError) -> tuple[Lineage, bytes] | None:
    """History and session of a restore point that cannot be read, from its name."""
    try:
        folder, group, lineage, session = (error.object_key or "").split("/")
        place, name = Lineage(group, bytes.fromhex(lineage)), bytes.fromhex(session)
    except ValueError:
        return None
    return (place, name) if folder == "points" and len(name) == SESSION_BYTES else None


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_CANDIDATES} more" if len(names) > _MOST_CANDIDATES else ""
    return ", ".join(names[:_MOST_CANDIDATES]) + more
