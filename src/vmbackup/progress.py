"""How long work tells of itself: a Protocol, with sinks for terminals, logs and metrics elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Told of work as it goes; called from any thread, once a unit of work (a MiB or more)."""

    def start(self, task: str, total_bytes: int | None) -> None:
        """Work named `task` begins; `total_bytes` is None where it cannot be known."""

    def advance(self, task: str, n_bytes: int) -> None:
        """`n_bytes` more of the task are done."""

    def finish(self, task: str) -> None:
        """The task has ended, well or not."""

    def note(self, text: str) -> None:
        """A sentence for the operator."""


class Silent:
    """A sink that says nothing."""

    def start(self, task: str, total_bytes: int | None) -> None:
        """Nothing."""

    def advance(self, task: str, n_bytes: int) -> None:
        """Nothing."""

    def finish(self, task: str) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


SILENT = Silent()


@contextmanager
def told(progress: Progress, task: str, total_bytes: int | None) -> Iterator[Callable[[int], None]]:
    """A task from here to the end of the block, well or not; gives what counts its bytes."""
    progress.start(task, total_bytes)
    try:
        yield lambda n_bytes: progress.advance(task, n_bytes)
    finally:
        progress.finish(task)
