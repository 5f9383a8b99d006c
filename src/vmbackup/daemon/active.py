"""A run that goes on: its deadline, how it is ended before its time, and what is made of its outcome then."""

from dataclasses import dataclass, replace
from enum import Enum

from vmbackup.config.units import format_duration
from vmbackup.daemon.work import Outcome, Run, Status

# Seconds that a run has to thaw its guest, abort its job and leave, once it is asked to end; then it is killed.
GRACE = 45.0


class Signal(Enum):
    """How a run is ended."""

    SOFT = "soft"
    HARD = "hard"


@dataclass
class Active:
    """A run, with the times of a clock that is never set (seconds) at which something must become of it."""

    run: Run
    overdue_at: float | None = None
    grace: float = GRACE
    hard_at: float | None = None
    overdue: bool = False
    sent: Signal | None = None

    def cancel(self, why: str) -> None:
        """Ask for its end; the first reason holds."""
        if self.run.cancelling is None:
            self.run = replace(self.run, cancelling=why)

    def signal(self, now: float) -> Signal | None:
        """What is to be sent to it now, once each."""
        if self.overdue_at is not None and self.overdue_at <= now and self.run.cancelling is None:
            self.overdue = True
            self.cancel("its deadline is over")
        if self.run.cancelling is None or self.sent is Signal.HARD:
            return None
        if self.sent is None:
            self.hard_at = min(now + self.grace, self.hard_at if self.hard_at is not None else now + self.grace)
            self.sent = Signal.SOFT
            return Signal.SOFT
        if self.hard_at is not None and self.hard_at <= now:
            self.sent = Signal.HARD
            return Signal.HARD
        return None

    def next_signal(self) -> float | None:
        """When `signal` has something to send, as far as it is known."""
        if self.sent is Signal.HARD:
            return None
        return self.hard_at if self.sent is Signal.SOFT else self.overdue_at

    def judge(self, outcome: Outcome) -> Outcome:
        """The outcome in the light of why it was ended. What succeeded all the same has succeeded."""
        if self.run.cancelling is None or outcome.status in (Status.SUCCESS, Status.WARNING):
            return outcome
        if not self.overdue:
            return replace(outcome, status=Status.CANCELLED, error=self.run.cancelling, hint=None, kind="interrupted")
        allowed = format_duration(self.run.request.deadline or 0)
        return replace(
            outcome,
            status=Status.FAILED,
            error=f"it was ended at its deadline, after {allowed}",
            hint="look for what makes it slow, or give the job a longer deadline",
            kind="deadline",
        )
