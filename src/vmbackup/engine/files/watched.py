"""An export that remembers what could not be read: a client is told EIO only, the operator why."""

from collections.abc import Iterator, Sequence

from vmbackup.nbd.channel import Buffer
from vmbackup.nbd.errors import ReadFailed
from vmbackup.nbd.export import Export
from vmbackup.nbd.extents import Extent


class WatchedExport:
    """See Export. `problem` is the first reason why a read failed."""

    def __init__(self, export: Export) -> None:
        self._export, self.size = export, export.size
        self.problem: str | None = None

    def read(self, offset: int, length: int) -> Sequence[Buffer]:
        """See Export."""
        try:
            return self._export.read(offset, length)
        except ReadFailed as error:
            self.problem = self.problem or str(error)
            raise

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """See Export."""
        try:
            yield from self._export.extents(offset, length)
        except ReadFailed as error:
            self.problem = self.problem or str(error)
            raise
