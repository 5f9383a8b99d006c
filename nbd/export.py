"""What a server exports: a disk of a fixed size, read by several threads."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from vmbackup.nbd.channel import Buffer
from vmbackup.nbd.extents import Extent

ZEROS = bytes(1 << 20)
"""A piece of a read that is a memoryview of these is told to clients as a hole, without its bytes."""

_ZEROS = memoryview(ZEROS)


class Export(Protocol):
    """A disk that never changes. `size` in bytes; all its methods are called by several threads at once.

    One may tell by an attribute `parallel` how many requests of a connection are worth working on at a time.
    """

    size: int

    def read(self, offset: int, length: int) -> Sequence[Buffer]:
        """The bytes of a part of the disk, `length` together, in pieces. Raises ReadFailed: its client gets EIO."""

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """The part's runs, DATA or ZERO, in order, `length` bytes together. Raises ReadFailed."""


def zeros(length: int) -> Iterator[memoryview]:
    """So many bytes of a hole, as pieces of a read."""
    while length > 0:
        piece = _ZEROS[:length]
        yield piece
        length -= len(piece)


def is_hole(piece: Buffer) -> bool:
    """Whether a piece came from `zeros`."""
    return isinstance(piece, memoryview) and piece.obj is ZEROS
