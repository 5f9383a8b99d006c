"""A DiskReader that has nothing to wait for."""

from abc import ABC, abstractmethod


class ImmediateReader(ABC):
    """Each read is done when it is asked for. Not shared between threads."""

    def __init__(self) -> None:
        self._cookies: list[int] = []
        self._next = 0

    @abstractmethod
    def _fill(self, offset: int, buffer: memoryview) -> None:
        """Fills the buffer."""

    @property
    def outstanding(self) -> int:
        """See DiskReader."""
        return len(self._cookies)

    def submit(self, offset: int, buffer: memoryview) -> int:
        """See DiskReader. Raises what the reading does."""
        self._fill(offset, buffer)
        self._next += 1
        self._cookies.append(self._next)
        return self._next

    def wait(self) -> int:
        """See DiskReader. The last first."""
        return self._cookies.pop()

    def close(self) -> None:
        """See DiskReader."""
        self._cookies.clear()
