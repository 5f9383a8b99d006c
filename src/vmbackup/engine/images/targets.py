"""Where a restore writes: what each kind of target offers."""

from collections.abc import Sequence
from typing import Protocol

# The most of a write.
WRITE_BYTES = 1 << 20


class Writer(Protocol):
    """One thread's way to the image."""

    def write(self, offset: int, pieces: Sequence[bytes]) -> None:
        """Writes the pieces one after the other from `offset` on. May return before they are written."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fills the buffer with what the image holds; only of parts that this writer has not written to."""

    def zero(self, offset: int, length: int) -> None:
        """Makes a part read as zeros, whatever it held and whatever lies below it."""

    def close(self) -> None:
        """Waits until all is written. Raises TargetError."""

    def abandon(self) -> None:
        """Gives up what is outstanding; harmless after `close`. Never raises."""


class Target(Protocol):
    """An image that is written: a new one under its temporary name, or one that is there."""

    def open_writer(self) -> Writer:
        """For one thread."""

    def expect(self, offset: int, length: int) -> None:
        """A part that will be written soon. Called by one thread, in the order of the work."""

    def sync(self) -> None:
        """Makes durable what was written so far. Raises TargetError."""

    def finish(self) -> int:
        """Whole and synced; gives the bytes that it takes on its file system."""

    def abandon(self) -> None:
        """Stops what runs for it. Never raises."""
