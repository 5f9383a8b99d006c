"""Several guests at one instant: all stand still, all are begun, all go on.

Each step is taken by all at once, in a thread each, and the next begins when the last has done it. So the guests stand
still for as long as the slowest of them takes, and no longer: who fails goes on at once, and each has a watchdog of its
own, which lets it go on in seconds whatever becomes of this process.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime

from vmbackup.hypervisor.live.beginning import Beginning
from vmbackup.hypervisor.live.job import LiveJob
from vmbackup.hypervisor.off.beginning import OffBeginning
from vmbackup.hypervisor.off.job import OffJob

Start = Beginning | OffBeginning
Job = LiveJob | OffJob

# Seconds that an agent has for its freeze where nothing else is told: the others of the group stand still meanwhile.
FREEZE_SECONDS = 5.0


def begin_together(beginnings: Sequence[Start]) -> list[Job | Exception]:
    """The job of each, or why it has none: then nothing of it is left, and it goes on. All have the same time.

    A guest that the freeze does not make stand still as a whole is paused for the begin.
    """
    if not beginnings:
        return []
    with ThreadPoolExecutor(len(beginnings), thread_name_prefix="begin") as pool:
        return _Together(pool, beginnings).run()


class _Together:
    def __init__(self, pool: ThreadPoolExecutor, beginnings: Sequence[Start]) -> None:
        self._pool, self._beginnings = pool, beginnings
        self._failed: dict[Start, Exception] = {}
        self._begun: dict[Start, Job] = {}
        self._going: list[Future[None]] = []

    def run(self) -> list[Job | Exception]:
        try:
            try:
                self._each(lambda beginning: beginning.prepare())
                self._each(lambda beginning: beginning.ready())
                self._each(lambda beginning: beginning.stand_still())
                self._each(lambda beginning: beginning.pause())
                now = datetime.now(UTC)
                self._each(lambda beginning: beginning.begin(now))
            finally:
                wait(self._going)  # an interrupt: who is still being frozen must not be left so
                self._each(lambda beginning: beginning.release(), every=True)
                self._each(lambda beginning: beginning.go_on(), every=True)
            self._each(self._job)
        except BaseException:
            wait(self._going)
            for beginning in self._beginnings:
                self._end(beginning)
            raise
        self._each(lambda beginning: beginning.give_up(), only=self._failed)
        return [self._failed.get(each) or self._begun[each] for each in self._beginnings]

    def _each(
        self, step: Callable[[Start], None], *, every: bool = False, only: dict[Start, Exception] | None = None
    ) -> None:
        """One step of all that have not failed, of `every` one, or of `only` these; returns when all have taken it."""
        these = [b for b in self._beginnings if every or (b in only if only is not None else b not in self._failed)]
        self._going = [self._pool.submit(self._try, step, beginning) for beginning in these]
        for future in self._going:
            future.result()

    def _try(self, step: Callable[[Start], None], beginning: Start) -> None:
        try:
            step(beginning)
        except Exception as error:
            self._failed.setdefault(beginning, error)
            beginning.release()

    def _job(self, beginning: Start) -> None:
        self._begun[beginning] = beginning.job()

    def _end(self, beginning: Start) -> None:
        """After an interrupt."""
        if job := self._begun.get(beginning):
            job.finish(committed=False)
        else:
            beginning.give_up()
