"""The begin of a guest that is off, in the steps that the guests of a group take together: it is still by itself."""

from collections.abc import Callable
from datetime import datetime

from vmbackup.hypervisor.off.hooks import OffHooks
from vmbackup.hypervisor.off.job import OffJob
from vmbackup.hypervisor.tidy.locks import DomainLock


class OffBeginning:
    """As Beginning, of a guest that is off. `begin` makes its job, before the others stand still: that takes a while.

    It holds from then on: a guest that is started loses its job.
    """

    def __init__(self, begin: Callable[[], OffJob], hooks: OffHooks, lock: DomainLock) -> None:
        self._begin, self._hooks, self._lock = begin, hooks, lock
        self._job: OffJob | None = None

    def run(self) -> OffJob:
        """All of it, for one guest alone."""
        try:
            try:
                self.prepare()
            finally:
                self.go_on()
            return self.job()
        except BaseException:
            self.give_up()
            raise

    def prepare(self) -> None:
        """The operator's hooks before, and the job."""
        self._job = self._begin()

    def ready(self) -> None:
        """It is."""

    def stand_still(self) -> None:
        """It does."""

    def pause(self) -> None:
        """It need not be."""

    def begin(self, time: datetime) -> None:
        """The time that its group has."""
        self.job().time = time

    def release(self) -> None:
        """It was not held."""

    def go_on(self) -> None:
        """Only the hooks after."""
        trouble = self._hooks.after()
        if self._job:
            self._job.notes += trouble

    def job(self) -> OffJob:
        """The job, which has taken over the lock."""
        assert self._job
        return self._job

    def give_up(self) -> None:
        """As if never begun."""
        if self._job:
            self._job.finish(committed=False)
        self._lock.release()
