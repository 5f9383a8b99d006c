"""A read of an object that goes on where a connection was cut."""

import contextlib
import re
import socket
from collections.abc import Callable
from typing import Any

from vmbackup.storage_backends.base import MAX_GET, ObjectTooLarge, ObjectTruncated, StoreUnavailable

# Read at once: boto3 copies each piece once more, so large ones cost memory, and small ones time.
_PIECE = 1 << 20
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


class Download:
    """Bytes of one object, asked for until they are all there.

    `room` is called once with the number of bytes and gives where they go. `length` is None up to the end, never 0.
    """

    def __init__(self, key: str, offset: int, length: int | None, room: Callable[[int], memoryview]) -> None:
        self._key, self._offset, self._length, self._room = key, offset, length, room
        self._view: memoryview | None = None
        self._etag = ""
        self.got = 0

    @property
    def done(self) -> bool:
        """Whether all bytes are there."""
        return self._view is not None and self.got == self._view.nbytes

    def step(self, get_object: Callable[..., Any]) -> None:
        """One request and its body; `got` tells how far it came, also where this raises what cut it.

        Raises ObjectTruncated, ObjectTooLarge, StoreUnavailable where another object stands there now; else what boto3
        raises.
        """
        answer = get_object(**self._range())
        body = answer["Body"]
        try:
            size = self._measure(answer)
            if self._view is None:
                self._view = self._room(size)
                self._etag = answer.get("ETag", "")
            elif answer.get("ETag", "") != self._etag:
                raise StoreUnavailable(f"{self._key} was replaced while it was read", "look who writes there")
            self._fill(body, self._view)
        finally:
            with contextlib.suppress(Exception):  # of a connection that is given up
                body.close()

    def _range(self) -> dict[str, str]:
        """What is asked for. Always a range: its answer tells the object's size, which no cut body can then hide."""
        last = "" if self._length is None else self._offset + self._length - 1
        asked = {"Range": f"bytes={self._offset + self.got}-{last}"}
        if self._etag:
            asked["IfMatch"] = self._etag
        return asked

    def _measure(self, answer: Any) -> int:
        """The number of bytes to read, out of the first answer: nothing is allocated for what is not there."""
        told = _RANGE.fullmatch(answer.get("ContentRange") or "")
        if told is None:
            raise StoreUnavailable(f"the server gives no ranges of {self._key}", "use another provider")
        if int(told[1]) != self._offset + self.got:
            raise StoreUnavailable(f"the server gave another part of {self._key} than was asked for")
        size = int(told[2])
        if self._length is None and size > MAX_GET:
            raise ObjectTooLarge(self._key, size)
        end = size if self._length is None else self._offset + self._length
        if end > size:
            raise ObjectTruncated(self._key, size, end)
        return end - self._offset

    def _fill(self, body: Any, view: memoryview) -> None:
        _acknowledge(body)
        while self.got < view.nbytes:
            arrived = body.readinto(view[self.got : self.got + _PIECE])
            if not arrived:
                raise ConnectionResetError("the answer ended early")
            self.got += arrived


def _acknowledge(body: Any) -> None:
    """Tell the server at once that the answer's head has come.

    Some send a small body only then (Nagle's algorithm, Ceph by default), and Linux puts that off by 40 ms.
    """
    with contextlib.suppress(AttributeError, OSError):  # another library's way of holding its socket: only slower
        body._raw_stream.connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)  # noqa: SLF001
