"""Calls in threads of their own: what APScheduler has as an executor.

Its own pool is joined as the interpreter ends, so that one call that hangs would keep the service from ending; and it
does not tell a call when it was due.
"""

import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any

Spawn = Callable[[Callable[[], None]], Any]


def spawn_thread(run: Callable[[], None]) -> None:
    """Run it in a thread that nobody waits for."""
    threading.Thread(target=run, name="clockwork-call", daemon=True).start()


class Calls:
    """Runs `call(job id, due)` for each job that is submitted, of one job only one at a time."""

    def __init__(self, call: Callable[[str, float], None], spawn: Spawn = spawn_thread) -> None:
        self._call = call
        self._spawn = spawn
        self._running: set[str] = set()
        self._changed = threading.Condition()

    def start(self, scheduler: Any, alias: str) -> None:
        """Nothing: threads are made as they are needed."""

    def shutdown(self, wait: bool = True) -> None:
        """Nothing: see `wait`."""

    def submit_job(self, job: Any, run_times: Sequence[datetime]) -> None:
        """Call it; MaxInstancesReachedError while its former call goes on."""
        from apscheduler.executors.base import MaxInstancesReachedError

        with self._changed:
            if job.id in self._running:
                raise MaxInstancesReachedError(job)
            self._running.add(job.id)
        try:
            self._spawn(partial(self._run, job.id, run_times[-1].timestamp()))
        except BaseException:
            self._done(job.id)
            raise

    def wait(self, seconds: float) -> bool:
        """Whether all calls have ended, after so many seconds at most."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._running, seconds)

    def _run(self, key: str, due: float) -> None:
        try:
            self._call(key, due)
        finally:
            self._done(key)

    def _done(self, key: str) -> None:
        with self._changed:
            self._running.discard(key)
            self._changed.notify_all()
