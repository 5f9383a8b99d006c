"""Lines out of pieces of output that another process writes: bounded, and fit for a log."""

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Lines:
    """Puts lines together out of pieces; of a line no more than `limit` bytes are kept."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that end in `data`, without their ends."""
        *whole, rest = (self._rest + data).split(b"\n")
        self._rest = rest[: self._limit]
        return [line[: self._limit] for line in whole]

    def rest(self) -> bytes:
        """What has no end so far; it is given once."""
        rest, self._rest = self._rest, b""
        return rest


def plain(data: bytes | str) -> str:
    """Text without control characters, which must not steer a terminal; what is no UTF-8 is shown with escapes."""
    text = data if isinstance(data, str) else data.decode("utf-8", "backslashreplace")
    return _CONTROL.sub("?", text.rstrip("\r\n"))
