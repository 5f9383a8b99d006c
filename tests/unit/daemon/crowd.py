"""A service with real processes: many at once, good ones and bad ones, for a while; and what must be so at the end."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from pathlib import Path

from tests.unit.daemon.machine import lives, nothing_left
from tests.unit.daemon.rig import Notes, request
from tests.unit.daemon.test_process import CHILDREN, CONFIG
from vmbackup.daemon.commands import Command
from vmbackup.daemon.dispatcher import Dispatcher
from vmbackup.daemon.process import ProcessRunner
from vmbackup.daemon.queue import Limits, Queue
from vmbackup.daemon.work import Kind, Request, Run, Status, Trigger, Work

AT_ONCE = 20
DOMAINS = 60
DEADLINE = 1.5
GRACE = 1.0
SLACK = 10.0  # seconds by which a busy machine may be late
KINDS = (
    *[("ok",)] * 8,
    *[("sleep", "0.5")] * 4,
    *[("tell", "1", "{}", "it broke\n")] * 3,
    *[("tell", "3", '{"points": [{"warnings": ["half"]}]}', "")] * 2,
    ("crash",),
    ("hang",),
    ("deaf",),
    ("silent", "0.5"),
    ("silent", "3600"),
    ("flood", "1"),
    ("leave", "group"),
)


class Crowd:
    """Asks for runs faster than there is room for, and cancels some."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder, self.chance = folder, chance
        self.notes = Notes()
        self.most = 0
        self.submitted: list[Request] = []
        runner = ProcessRunner(self.commands, lambda: CONFIG, CHILDREN)
        self.dispatcher = Dispatcher(Queue(Limits(AT_ONCE)), runner, self.notes, grace=GRACE)
        self.done = threading.Event()

    def commands(self, one: Request) -> list[Command]:
        lock = self.folder / f"{one.work.kind}-{one.work.domain}"
        return [("alone", str(lock), *random.Random(one.id).choice(KINDS))]

    def tick(self) -> None:
        """As the service's own loop."""
        while not self.done.is_set():
            self.dispatcher.wake.clear()
            then = self.dispatcher.tick()
            self.most = max(self.most, len(self.dispatcher.runs()))
            self.dispatcher.wake.wait(1.0 if then is None else max(0.0, min(1.0, then - time.time())))

    def ask(self) -> None:
        work = Work(Kind.BACKUP, "local", "nightly", f"vm{self.chance.randrange(DOMAINS)}")
        trigger = self.chance.choice((Trigger.SCHEDULE, Trigger.MANUAL))
        now = time.time()
        one = request(work, trigger, now, deadline=DEADLINE, retries=1, retry_after=1.0)
        self.submitted.append(one)
        self.dispatcher.submit(one)
        if self.chance.random() < 0.05:
            known = [*(run.id for run in self.dispatcher.runs()), *(r.id for r in self.dispatcher.waiting())]
            if known:
                self.dispatcher.cancel(self.chance.choice(known), "an operator")

    def live(self, seconds: float) -> None:
        """For so long; then all is stopped."""
        thread = threading.Thread(target=self.tick)
        thread.start()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.ask()
            time.sleep(self.chance.uniform(0, 0.05))
        began = time.monotonic()
        self.dispatcher.stop(20)
        assert time.monotonic() - began < 20 + SLACK
        self.done.set()
        thread.join()
        self.dispatcher.tick()

    def check(self) -> None:
        """Each request came to one end, limits held, none overlapped another, and no process is left."""
        notes = self.notes
        ends = Counter(run.id for run in notes.ended_)
        ends.update(one.id for one, _ in (*notes.skipped_, *notes.dropped_))
        assert ends == Counter([*(r.id for r in self.submitted), *(r.id for r in notes.retries)])
        assert [run.id for run in notes.started_]
        assert {r.id for r in notes.started_} == {r.id for r in notes.ended_}
        assert self.most <= AT_ONCE
        for run in notes.ended_:
            self.check_run(run)

    def check_run(self, run: Run) -> None:
        assert run.outcome
        assert run.finished
        assert run.outcome.exit_code != 77, "two of a domain at once"
        assert run.outcome.kind not in ("internal", "system"), run.outcome
        assert run.finished - run.started < DEADLINE + GRACE + SLACK
        assert run.pid is None or not lives(run.pid)
        left = run.outcome.document.get("left")
        assert left is None or not lives(left)


def lived(folder: Path, seconds: float) -> Crowd:
    """A crowd that has lived, been checked, and left nothing."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    with nothing_left():
        crowd = Crowd(folder, random.Random(seed))
        crowd.live(seconds)
        crowd.check()
    statuses = Counter(run.outcome.status for run in crowd.notes.ended_ if run.outcome)
    print({status.value: number for status, number in statuses.items()}, f"{crowd.most} at once")
    assert set(statuses) == set(Status)
    return crowd
