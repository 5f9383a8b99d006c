"""Sinks of progress, on standard error: bars on a terminal, else a line now and then, or nothing.

For the service it goes into a pipe instead (wire.py).
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from vmbackup.cli.output import clean
from vmbackup.config.units import format_duration, format_size
from vmbackup.progress import Progress, Silent

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_BARS_HZ = 4  # 1 % of a core; 10 Hz took 2.3 %
_LINE_SECONDS = 30.0


@contextmanager
def shown_progress(*, quiet: bool, fd: int | None = None) -> Iterator[Progress]:
    """A sink that suits standard error, closed at the end; with `fd` one that writes there instead."""
    if fd is not None:
        from vmbackup.cli.wire import Wire

        wire = Wire(fd)
        try:
            yield wire
        finally:
            wire.close()
    elif quiet:
        yield Silent()
    elif sys.stderr.isatty():
        bars = Bars()
        try:
            yield bars
        finally:
            bars.close()
    else:
        lines = Lines(sys.stderr)
        try:
            yield lines
        finally:
            lines.close()


class Bars:
    """A bar a task on a terminal; gone when all is done."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bars: RichProgress | None = None  # rich is imported when there is something to show
        self._tasks: dict[str, TaskID] = {}

    def start(self, task: str, total_bytes: int | None) -> None:
        """Show a bar, or a pulse where the total is not known."""
        with self._lock:
            if self._bars is None:
                self._bars = _rich_progress()
                self._bars.start()
            self._tasks[task] = self._bars.add_task(clean(task), total=total_bytes)

    def advance(self, task: str, n_bytes: int) -> None:
        """Move the bar."""
        with self._lock:
            if self._bars is not None and task in self._tasks:
                self._bars.advance(self._tasks[task], n_bytes)

    def finish(self, task: str) -> None:
        """Take the bar away; the result is printed by the command."""
        with self._lock:
            if self._bars is not None and task in self._tasks:
                self._bars.remove_task(self._tasks.pop(task))
                if not self._tasks:  # results are printed between tasks, and need the terminal for themselves
                    self._bars.stop()
                    self._bars = None

    def note(self, text: str) -> None:
        """A line above the bars."""
        sys.stderr.write(f"{clean(text)}\n")  # rich stands in for sys.stderr while bars are shown

    def close(self) -> None:
        """Give the terminal back."""
        with self._lock:
            if self._bars is not None:
                self._bars.stop()


def _rich_progress() -> "RichProgress":
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
        refresh_per_second=_BARS_HZ,
        transient=True,
        redirect_stdout=False,  # it would end on standard error
    )


@dataclass
class _Task:
    total: int | None
    started: float
    done: int = 0
    told: bool = False


class Lines:
    """A line a task every 30 seconds, for logs; with `every` None only when `tell` is called."""

    def __init__(
        self,
        stream: TextIO,
        *,
        clock: Callable[[], float] = time.monotonic,
        every: float | None = _LINE_SECONDS,
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._every = every
        self._lock = threading.Lock()
        self._tasks: dict[str, _Task] = {}
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, task: str, total_bytes: int | None) -> None:
        """Begin to count; the first line comes after the pace."""
        with self._lock:
            self._tasks[task] = _Task(total_bytes, self._clock())
            if self._thread is None and self._every is not None:
                self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
                self._thread.start()

    def advance(self, task: str, n_bytes: int) -> None:
        """Count."""
        with self._lock:
            if task in self._tasks:
                self._tasks[task].done += n_bytes

    def finish(self, task: str) -> None:
        """The last line of a task that had one before."""
        with self._lock:
            state = self._tasks.pop(task, None)
            if state is not None and state.told:
                self._write(task, state)

    def note(self, text: str) -> None:
        """A line at once."""
        with self._lock:
            self._stream.write(f"{clean(text)}\n")
            self._stream.flush()

    def tell(self) -> None:
        """A line for each running task, now."""
        with self._lock:
            for task, state in self._tasks.items():
                state.told = True
                self._write(task, state)

    def close(self) -> None:
        """Stop the pace."""
        self._closed.set()
        if self._thread is not None and self._thread.is_alive():  # an interrupt may come before its start
            self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(self._every):
            self.tell()

    def _write(self, task: str, state: _Task) -> None:
        seconds = max(self._clock() - state.started, 1e-6)
        rate = state.done / seconds
        parts = [format_size(state.done)]
        if state.total:
            share = min(100, state.done * 100 // state.total)
            parts[0] += f" of {format_size(state.total)} ({share} %)"
        parts.append(f"{format_size(int(rate))}/s")
        if state.total and rate and state.done < state.total:
            parts.append(f"{format_duration((state.total - state.done) / rate)} left")
        self._stream.write(f"{clean(task)}: {', '.join(parts)}\n")
        self._stream.flush()
