"""Runs as processes: the command line of vmbackup, once or several times.

Each is given the text of the configuration that is in force as a file in memory, so that an edit of
the file on disk hurts no run, and a pipe on which it tells of its progress.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from vmbackup.daemon.child import PROGRAM, Child, Sink, environment
from vmbackup.daemon.commands import Command
from vmbackup.daemon.dispatcher import Report
from vmbackup.daemon.gauge import Gauge
from vmbackup.daemon.group import verdict
from vmbackup.daemon.inforce import in_memory
from vmbackup.daemon.outcome import Ended, judge, refused
from vmbackup.daemon.run_log import RunLog
from vmbackup.daemon.work import Outcome, Request, Run, Status, Work
from vmbackup.errors import VmbackupError

# Bytes of standard output that are kept: the longest document, a list of all restore points, is far below.
_MOST_OUTPUT = 64 << 20

_log = logging.getLogger(__name__)


class ProcessRunner:
    """A Runner of processes, a thread a run. `commands` may raise VmbackupError, which ends the run.

    `config` gives the text of the configuration in force.
    """

    def __init__(
        self,
        commands: Callable[[Request], Sequence[Command]],
        config: Callable[[], bytes],
        program: Sequence[str] = PROGRAM,
    ) -> None:
        self._commands, self._config, self._program = commands, config, tuple(program)
        self._going: dict[str, _Going] = {}
        self._lock = threading.Lock()

    def start(self, run: Run, report: Report) -> None:
        """As Runner says. Raises RuntimeError where the machine has no thread left."""
        going = _Going(run, report, self._program)
        with self._lock:
            self._going[run.id] = going
        try:
            threading.Thread(target=self._run, args=(going,), name=f"run-{run.id}", daemon=True).start()
        except RuntimeError:
            self._forget(run.id)
            raise

    def cancel(self, run_id: str, hard: bool) -> None:
        """As Runner says."""
        with self._lock:
            going = self._going.get(run_id)
        if going:
            going.cancel(hard=hard)

    def _forget(self, run_id: str) -> None:
        with self._lock:
            self._going.pop(run_id, None)

    def _run(self, going: "_Going") -> None:
        """All of a run, in its thread."""
        try:
            outcome = going.carry_out(self._commands(going.run.request), self._config())
        except VmbackupError as error:
            outcome = refused(error)
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            outcome = Outcome(Status.FAILED, error=f"it could not be started: {place}{error.strerror}", kind="system")
        except Exception as error:
            _log.exception("run %s met a fault in the service itself", going.run.id)
            outcome = Outcome(Status.FAILED, error=f"{type(error).__name__}: {error}", kind="internal")
        self._forget(going.run.id)
        going.report.ended(going.run.id, outcome)


class _Going:
    """A run that goes on, in its own thread; `cancel` comes from others."""

    def __init__(self, run: Run, report: Report, program: Sequence[str]) -> None:
        self.run, self.report, self._program = run, report, program
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._cancelled = self._hard = False

    def cancel(self, *, hard: bool) -> None:
        """End what runs, and begin nothing more."""
        with self._lock:
            self._cancelled, self._hard = True, self._hard or hard
            if self._child:
                self._child.end(hard=hard)

    def carry_out(self, commands: Sequence[Command], config: bytes) -> Outcome:
        """Run the commands up to the first that fails; a warning of one is the warning of all."""
        outcome = Outcome(Status.SUCCESS, 0)
        for command in commands:
            if self._cancelled:
                return Outcome(Status.CANCELLED, kind="interrupted")
            warned = outcome if outcome.status is Status.WARNING else None
            outcome = judge(self._one(command, config))
            outcome = verdict(outcome) if self.run.request.work.members else outcome
            if outcome.status not in (Status.SUCCESS, Status.WARNING):
                return outcome
            outcome = warned or outcome
        return outcome

    def _one(self, command: Command, config: bytes) -> Ended:
        log = RunLog(self.run.id, _named(self.run.request.work))
        gauge = Gauge(partial(self.report.progress, self.run.id), log.say)
        output = _Output()
        with contextlib.ExitStack() as stack:
            child, others = self._started(stack, command, config, gauge.feed)
            self.report.pid(self.run.id, child.pid)
            self._follow(child)
            try:
                code = child.wait(output.feed, log.feed, others, gauge.idle)
            finally:
                self._child = None
        log.close()
        return Ended(code, output.data, tuple(log.last), self._cancelled)

    def _started(
        self, stack: contextlib.ExitStack, command: Command, config: bytes, progress: Sink
    ) -> tuple[Child, Mapping[int, Sink]]:
        """The process, and what else to listen to, which `stack` closes."""
        read, write = os.pipe()
        stack.callback(os.close, read)
        with contextlib.ExitStack() as given:
            given.callback(os.close, write)
            file = given.enter_context(in_memory(config))
            options = ("--config", f"/dev/fd/{file}", "--json", "--progress-fd", str(write))
            child = Child((*self._program, *options, *command), environment(), (file, write))
        return child, {read: progress}

    def _follow(self, child: Child) -> None:
        """Let `cancel` reach the process, also a cancel that came as it was being started."""
        with self._lock:
            self._child = child
            if self._cancelled:
                child.end(hard=self._hard)


def _named(work: Work) -> str:
    """What its lines in the log are of."""
    return work.domain or (work.job if work.members else None) or work.repository


class _Output:
    """Standard output as far as it may be kept; `data` is None where it was more."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= _MOST_OUTPUT:
            self._pieces.append(data)
        else:
            self._pieces.clear()

    @property
    def data(self) -> bytes | None:
        return b"".join(self._pieces) if self._size <= _MOST_OUTPUT else None
