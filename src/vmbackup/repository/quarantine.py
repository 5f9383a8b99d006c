"""What revoked writers committed since: told, kept, never used (docs/repository-format.md, section 4)."""

from dataclasses import dataclass
from datetime import UTC, datetime

from vmbackup.repository.layout import short_id
from vmbackup.repository.points import POINT, Point
from vmbackup.repository.repository import PointList, Repository

HINT = "compare it with the host's own log; if nobody wants it: vmbackup forget {id}"


@dataclass(frozen=True)
class Quarantined:
    """A commit that does not count. `domain` is "" for what is no restore point: chunks, or a table of moves."""

    id: str
    domain: str
    time: datetime
    writer: str

    @property
    def problem(self) -> str:
        """One sentence."""
        what = f"a restore point of '{self.domain}'" if self.domain else "what a run stored"
        return f"{what}, signed by '{self.writer}' and not seen when that key was revoked"

    @property
    def hint(self) -> str:
        """What an operator may do."""
        return HINT.format(id=self.id)


def quarantined(repository: Repository, found: PointList) -> list[Quarantined]:
    """What is in quarantine, newest first."""
    points = sorted(found.quarantined, key=lambda point: point.session, reverse=True)
    return [_told(found, point, repository.writers()[point.writer].name) for point in points]


def _told(found: PointList, point: Point, writer: str) -> Quarantined:
    begun = datetime.fromtimestamp(int.from_bytes(point.session[:6], "big") / 1000, UTC)
    if point.kind == POINT:
        return Quarantined(found.name(point), point.domain, begun, writer)
    return Quarantined(short_id(point.session), "", begun, writer)
