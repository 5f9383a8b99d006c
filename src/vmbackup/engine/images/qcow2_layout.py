"""Where the clusters of a new qcow2 image go: its tables, filled as a restore goes on (QEMU, docs/interop/qcow2.txt).

QEMU makes the empty image, header and all; here clusters are given out one behind the other, each used once.
"""

import os
import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from vmbackup.engine.images.reserved_space import AHEAD, STEP, reserve

_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
_MORE = struct.Struct(">QQQI")  # of version 3: incompatible, compatible and autoclear features, refcount order
_MAGIC = b"QFI\xfb"
_COPIED = 1 << 63  # its cluster has one user
_REFCOUNT_BYTES = 2
_LEAST_CLUSTER = 4096  # bytes: below, parts of a page would be written by two ways
_TABLE_BYTES = 32 << 20  # of tables in memory; two windows of the work have less


@dataclass(frozen=True)
class _Head:
    cluster: int
    size: int
    l1_size: int
    l1_offset: int
    refcounts_offset: int
    refcounts: int  # entries of the refcount table

    @classmethod
    def read(cls, fd: int) -> "_Head | None":
        """That of an empty image; None of one with anything else than is filled here."""
        data = os.pread(fd, _HEADER.size + _MORE.size, 0)
        magic, version, backing, _, bits, size, crypt, l1_size, l1, table, clusters, snapshots, _ = _HEADER.unpack_from(
            data
        )
        incompatible, _, _, order = _MORE.unpack_from(data, _HEADER.size) if version == 3 else (0, 0, 0, 4)
        cluster = 1 << bits
        # Of the features that QEMU must know, the type of compression (bit 3) says nothing of clusters like these.
        usual = magic == _MAGIC and version in (2, 3) and not (incompatible & ~0b1000)
        if not usual or backing or crypt or snapshots or order != 4 or cluster < _LEAST_CLUSTER:
            return None
        return cls(cluster, size, l1_size, l1, table, clusters * cluster // 8)


class Qcow2Layout:
    """Gives out clusters. One thread calls `place`, `flush` and `finish`; any may ask `find` for what was placed."""

    def __init__(self, fd: int, head: _Head) -> None:
        self._fd, self._head = fd, head
        self.cluster = head.cluster
        self._entries = head.cluster // 8  # of a table
        self._counted = head.cluster // _REFCOUNT_BYTES  # clusters that a block of refcounts tells of
        self._l1 = array("Q", bytes(8 * head.l1_size))
        self._blocks = _swapped(os.pread(fd, 8 * head.refcounts, head.refcounts_offset))
        self._written_blocks = 0
        self._tables: dict[int, array[int]] = {}
        self._dirty: set[int] = set()
        end = max(os.fstat(fd).st_size, head.l1_offset + 8 * head.l1_size)
        self._next = -(-end // head.cluster)
        self._reserved = self._next * head.cluster
        self._reserves = True

    @classmethod
    def of(cls, fd: int) -> "Qcow2Layout | None":
        """The layout of an empty image; None where it has options, or a size, that are not dealt with here."""
        head = _Head.read(fd)
        if head is None:
            return None
        most = head.refcounts * (head.cluster // _REFCOUNT_BYTES) * head.cluster
        return cls(fd, head) if head.size + head.size // 64 + (64 << 20) < most else None

    def place(self, offset: int, length: int) -> None:
        """Gives clusters to a part of the disk that will be written."""
        first, end = offset // self.cluster, -(-(offset + length) // self.cluster)
        while first < end:
            number, at = divmod(first, self._entries)
            count = min(end - first, self._entries - at)
            table = self._table(number)
            self._dirty.add(number)
            while count:
                given = self._give(table, at, count)
                at, first, count = at + given, first + given, count - given
        self._reserve()

    def _give(self, table: "array[int]", at: int, count: int) -> int:
        """Clusters for entries of a table; how many were seen to."""
        if table[at]:  # a cluster that is larger than a chunk was placed by another chunk of it
            return 1
        free = 1
        while free < count and not table[at + free]:
            free += 1
        first, given = self._take(free)
        host = first * self.cluster
        table[at : at + given] = array(
            "Q", range(host | _COPIED, (host + given * self.cluster) | _COPIED, self.cluster)
        )
        return given

    def _take(self, count: int) -> tuple[int, int]:
        """The next free clusters: the first, and how many in a row."""
        block = self._next // self._counted
        if not self._blocks[block]:
            self._blocks[block] = self._next * self.cluster
            self._next += 1
        given = min(count, (block + 1) * self._counted - self._next)
        if not given:
            return self._take(count)
        self._next += given
        return self._next - given, given

    def _table(self, number: int) -> "array[int]":
        table = self._tables.get(number)
        if table is None:
            if self._l1[number]:
                table = self._read_table(number)
            else:
                self._l1[number] = self._take(1)[0] * self.cluster | _COPIED
                table = array("Q", bytes(self.cluster))
            self._make_room()
            self._tables[number] = table
        return table

    def _read_table(self, number: int) -> "array[int]":
        return _swapped(os.pread(self._fd, self.cluster, self._l1[number] & ~_COPIED))

    def _make_room(self) -> None:
        while (len(self._tables) + 1) * self.cluster > _TABLE_BYTES:
            oldest = next(iter(self._tables))
            self._write_table(oldest)
            del self._tables[oldest]

    def _write_table(self, number: int) -> None:
        if number in self._dirty:
            os.pwrite(self._fd, _bytes(self._tables[number]), self._l1[number] & ~_COPIED)
            self._dirty.discard(number)

    def find(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """(place in the file, bytes) of each piece of a part that was placed, in order."""
        end = offset + length
        start, place = offset, self._host(offset)
        at = (offset // self.cluster + 1) * self.cluster
        while at < end:
            host = self._host(at)
            if host != place + at - start:
                yield place, at - start
                start, place = at, host
            at += self.cluster
        yield place, end - start

    def _host(self, offset: int) -> int:
        number, at = divmod(offset // self.cluster, self._entries)
        table = self._tables.get(number) or self._read_table(number)
        if not table[at]:
            raise ValueError(f"nothing was placed at {offset}")
        return (table[at] & ~_COPIED) + offset % self.cluster

    def _reserve(self) -> None:
        while self._reserves and self._next * self.cluster + AHEAD > self._reserved:
            self._reserves = reserve(self._fd, self._reserved, STEP)
            self._reserved += STEP

    def flush(self) -> None:
        """Writes the tables: what is counted before what names it, so that after a kill QEMU can mend the image."""
        self._write_refcounts()
        for number in sorted(self._dirty):
            self._write_table(number)
        os.fdatasync(self._fd)
        os.pwrite(self._fd, _bytes(self._l1), self._head.l1_offset)

    def _write_refcounts(self) -> None:
        last = (self._next - 1) // self._counted
        for block in range(self._written_blocks, last + 1):
            used = min(self._counted, self._next - block * self._counted)
            ones = b"\0\1" * used + bytes(_REFCOUNT_BYTES * (self._counted - used))
            os.pwrite(self._fd, ones, self._blocks[block])
        self._written_blocks = last
        os.pwrite(self._fd, _bytes(self._blocks), self._head.refcounts_offset)

    def finish(self) -> None:
        """Writes the tables, and cuts off what was reserved and not given out."""
        self.flush()
        os.ftruncate(self._fd, self._next * self.cluster)


def _swapped(data: bytes) -> "array[int]":
    """Big-endian numbers."""
    numbers = array("Q", data)
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers


def _bytes(numbers: "array[int]") -> bytes:
    return _swapped(numbers.tobytes()).tobytes()
