"""Where a restore writes: what each kind of target offers."""

from collections.abc import Sequence
from typing import Protocol

# The most of a write.
WRITE_BYTES = 1 << 20


class Writer(Protocol):
    """One thread's way to the image."""

    def write(self, offset: int, pieces: Sequence[bytes]) -> None:
        """Writes the pieces one after the other from `offset` on. May return before they are written."""

    def zero(self, offset: int, length: int) -> None:
        """Makes a part read as zeros, whatever it held and whatever lies below it."""

    def close(self) -> None:
        """Waits until all is written. Raises TargetError."""

    def abandon(self) -> None:
        """Gives up what is outstanding; harmless after `close`. Never raises."""


class Target(Protocol):
    """A new image in the making, under its temporary name."""

    def open_writer(self) -> Writer:
        """For one thread."""

    def finish(self) -> int:
        """Whole and synced; gives the bytes that it takes on its file system."""

    def abandon(self) -> None:
        """Stops what runs for it. Never raises."""
