"""What a read-only server says to a request."""

import logging
import struct
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from vmbackup.nbd import protocol as p
from vmbackup.nbd.channel import Buffer
from vmbackup.nbd.errors import ReadFailed
from vmbackup.nbd.export import is_hole
from vmbackup.nbd.extents import Kind
from vmbackup.nbd.greeting import CONTEXT_ID, Agreed
from vmbackup.nbd.request import pieces
from vmbackup.nbd.stream import Gone

_log = logging.getLogger("vmbackup.nbd.server")
# Bytes read and sent at a time: so much a worker holds, however much was asked for.
PIECE = 1 << 20
MAX_EXTENTS = 8192  # of one answer: 64 KiB; a client asks on from where they end
_STATES = {Kind.ZERO: p.STATE_HOLE | p.STATE_ZERO, Kind.DATA: 0}
_WRITES = (p.CMD_WRITE, p.CMD_TRIM, p.CMD_WRITE_ZEROES)
_MALFORMED = "beyond the end of the export, or of no bytes"

Message = Sequence[Buffer]


class Asked(NamedTuple):
    """A request as it came. `offset` and `length` in bytes."""

    flags: int
    command: int
    cookie: int
    offset: int
    length: int


class Answers:
    """Answers to the requests of one connection, shared by its threads."""

    def __init__(self, agreed: Agreed) -> None:
        self._export, self._name = agreed.export, agreed.name
        self._structured, self._allocation = agreed.structured, agreed.allocation

    def of(self, asked: Asked) -> Iterator[Message]:
        """The messages of one answer, each to be sent whole; those of other answers may come in between."""
        if asked.command == p.CMD_READ:
            return self._read(asked)
        if asked.command == p.CMD_BLOCK_STATUS:
            return self._status(asked)
        if asked.command == p.CMD_CACHE:
            return self._cache(asked)
        if asked.command == p.CMD_FLUSH:
            return iter((self._done(asked),))
        if asked.command in _WRITES:
            return iter((self._error(asked, p.EPERM, "the export is read-only"),))
        return iter((self._error(asked, p.EINVAL, f"unknown command {asked.command}"),))

    def _read(self, asked: Asked) -> Iterator[Message]:
        whole = not self._structured or bool(asked.flags & p.CMD_FLAG_DF)
        if asked.flags & p.CMD_FLAG_DF and not self._structured:
            yield self._error(asked, p.EINVAL, "structured replies were not agreed on")
        elif not self._inside(asked):
            yield self._error(asked, p.EINVAL, _MALFORMED)
        elif asked.length > p.MAX_REQUEST:
            yield self._error(asked, p.EINVAL, f"more than {p.MAX_REQUEST} bytes at once")
        elif whole and self._structured and asked.length > PIECE:
            yield self._error(asked, p.EOVERFLOW, f"more than {PIECE} bytes in one piece")
        else:
            yield from self._bytes(asked)

    def _bytes(self, asked: Asked) -> Iterator[Message]:
        end = asked.offset + asked.length
        begun = False
        try:
            if not self._structured and asked.length > PIECE:
                self._look(asked)  # a simple reply cannot be taken back once it has begun
            for at, size in pieces(asked.offset, asked.length, PIECE):
                found = self._export.read(at, size)
                if sum(map(len, found)) != size:
                    raise ReadFailed(f"the export gave other than {size} bytes at {at}")
                if self._structured:
                    yield self._chunks(asked, at, found, last=at + size == end)
                else:
                    yield found if begun else (self._simple(asked), *found)
                begun = True
        except (Gone, GeneratorExit):
            raise
        except Exception as error:
            failed = self._failed(asked, error)
            if begun and not self._structured:
                raise Gone("a read failed in the middle of a simple reply") from None
            yield failed

    def _look(self, asked: Asked) -> None:
        for at, size in pieces(asked.offset, asked.length, PIECE):
            self._export.read(at, size)

    def _chunks(self, asked: Asked, at: int, found: Sequence[Buffer], *, last: bool) -> list[Buffer]:
        """Neighbouring pieces of data as one chunk, neighbouring holes as one."""
        message: list[Buffer] = []
        runs: list[tuple[bool, list[Buffer]]] = []
        holes = not asked.flags & p.CMD_FLAG_DF
        for piece in found:
            hole = holes and is_hole(piece)
            if runs and runs[-1][0] is hole:
                runs[-1][1].append(piece)
            else:
                runs.append((hole, [piece]))
        for number, (hole, parts) in enumerate(runs, 1):
            size = sum(map(len, parts))
            flags = p.CHUNK_FLAG_DONE if last and number == len(runs) else 0
            kind = p.CHUNK_OFFSET_HOLE if hole else p.CHUNK_OFFSET_DATA
            head = p.CHUNK.pack(p.CHUNK_MAGIC, flags, kind, asked.cookie)
            if hole:
                message.append(head + p.HOLE.pack(12, at, size))
            else:
                message.append(head + p.DATA.pack(8 + size, at))
                message += parts
            at += size
        return message

    def _status(self, asked: Asked) -> Iterator[Message]:
        if not self._allocation:
            yield self._error(asked, p.EINVAL, "no meta context was agreed on")
        elif not self._inside(asked):
            yield self._error(asked, p.EINVAL, _MALFORMED)
        else:
            most = 1 if asked.flags & p.CMD_FLAG_REQ_ONE else MAX_EXTENTS
            try:
                runs = islice(self._export.extents(asked.offset, asked.length), most)
                told = [number for _, length, kind in runs for number in (length, _STATES[kind])]
            except Exception as error:
                yield self._failed(asked, error)
            else:
                payload = struct.pack(f">I{len(told)}I", CONTEXT_ID, *told)
                yield (self._chunk(asked, p.CHUNK_BLOCK_STATUS, payload),)

    def _cache(self, asked: Asked) -> Iterator[Message]:
        """Reads it, so that it is at hand; no more than one read may ask for."""
        if not self._inside(asked):
            yield self._error(asked, p.EINVAL, _MALFORMED)
            return
        try:
            self._look(asked._replace(length=min(asked.length, p.MAX_REQUEST)))
        except Exception as error:
            yield self._failed(asked, error)
        else:
            yield self._done(asked)

    def _inside(self, asked: Asked) -> bool:
        return asked.length > 0 and asked.offset + asked.length <= self._export.size

    def _failed(self, asked: Asked, error: Exception) -> Message:
        """The export tells its log what it could not read; what nobody expected is told here."""
        if not isinstance(error, ReadFailed):
            _log.error("export=%s offset=%d length=%d failed", self._name, asked.offset, asked.length, exc_info=error)
            return self._error(asked, p.EIO, "the server failed")
        return self._error(asked, p.EIO, str(error))

    def _error(self, asked: Asked, errno: int, text: str) -> Message:
        if not self._structured:
            return (p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, errno, asked.cookie),)
        raw = text.encode()[: p.MAX_STRING]
        return (self._chunk(asked, p.CHUNK_ERROR, p.ERROR.pack(errno, len(raw)) + raw),)

    def _done(self, asked: Asked) -> Message:
        return (self._chunk(asked, p.CHUNK_NONE, b"") if self._structured else self._simple(asked),)

    @staticmethod
    def _simple(asked: Asked) -> bytes:
        return p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, 0, asked.cookie)

    @staticmethod
    def _chunk(asked: Asked, kind: int, payload: bytes) -> bytes:
        head = p.CHUNK.pack(p.CHUNK_MAGIC, p.CHUNK_FLAG_DONE, kind, asked.cookie)
        return head + p.U32.pack(len(payload)) + payload
