"""What history keeps, as values: a run, the last run of a piece of work, and what is written at once."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from vmbackup.daemon.digest import Counts, details
from vmbackup.daemon.snapshot import LastRun
from vmbackup.daemon.work import Kind, Run, Status, Work, moment

Guest = tuple[str, str, str]  # domain, job, repository


@dataclass(frozen=True)
class Row:
    """A run as it is kept; `finished` and `status` are None while it goes on. Times are seconds since the epoch."""

    id: str
    started: float
    kind: str
    repository: str
    job: str | None
    domain: str | None
    target: str | None
    trigger: str
    attempt: int
    due: float
    finished: float | None = None
    status: str | None = None
    exit_code: int | None = None
    error: str | None = None
    hint: str | None = None
    error_kind: str | None = None
    details: str = "{}"

    @classmethod
    def of(cls, run: Run) -> "Row":
        """A run as it is now."""
        request, work, outcome = run.request, run.request.work, run.outcome
        places = (work.kind.value, work.repository, work.job, work.domain, work.target)
        row = cls(run.id, run.started, *places, request.trigger.value, request.attempt, request.due)
        if outcome is None or run.finished is None:
            return row
        return replace(
            row,
            finished=run.finished,
            status=outcome.status.value,
            exit_code=outcome.exit_code,
            error=_storable(outcome.error),
            hint=_storable(outcome.hint),
            error_kind=_storable(outcome.kind),
            details=json.dumps(details(work.kind, outcome.document)),
        )

    @property
    def work(self) -> Work:
        """What was done."""
        return Work(Kind(self.kind), self.repository, self.job, self.domain, self.target)

    def last(self, stages: Mapping[str, float]) -> LastRun:
        """As the last run of its work."""
        assert self.finished is not None
        status = self.status or Status.FAILED.value
        places = (self.id, status, self.trigger, self.attempt, self.started, self.finished)
        return LastRun(*places, self.error, self.hint, dict(stages))

    def document(self) -> dict[str, Any]:
        """The JSON of the control socket's GET /runs: times ISO 8601, seconds as numbers."""
        plain = asdict(self)
        plain |= {name: moment(getattr(self, name)) for name in ("started", "due", "finished")}
        kept = json.loads(plain.pop("details"))
        return {**plain, "duration_seconds": max(0.0, (self.finished or self.started) - self.started), **kept}


COLUMNS = tuple(column.name for column in fields(Row))


@dataclass(frozen=True)
class Last:
    """The last run of a piece of work, and when one last succeeded (0: never)."""

    run: LastRun
    success: float = 0.0

    def after(self, run: LastRun) -> "Last":
        """With one more."""
        good = run.status in (Status.SUCCESS, Status.WARNING)
        return Last(run, run.finished if good else self.success)


@dataclass
class Batch:
    """What is written at once; None where a row is to go."""

    runs: dict[tuple[str, float], Row] = field(default_factory=dict)
    lasts: dict[Work, Last | None] = field(default_factory=dict)
    totals: dict[Guest, Counts | None] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.runs or self.lasts or self.totals or self.facts)


@dataclass
class Kept:
    """What a file holds as it is opened."""

    lasts: dict[Work, Last] = field(default_factory=dict)
    totals: dict[Guest, Counts] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    unfinished: list[Row] = field(default_factory=list)


def _storable(text: str | None) -> str | None:
    """Text that is UTF-8: half of a pair out of JSON is not."""
    return text if text is None else text.encode("utf-8", "backslashreplace").decode()
