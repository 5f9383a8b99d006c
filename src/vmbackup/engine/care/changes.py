"""What others did to a repository while it was looked at."""

from collections.abc import Container

from vmbackup.repository.repository import PointList


def changed(before: PointList, now: PointList) -> bool:
    """Whether something that was needed `before` may be gone `now`, or lie elsewhere.

    A collector takes what no valid point needs: so nothing goes while each point stays, and each table of moves.
    """
    return bool(_needing(before) - _needing(now)) or _tables(before) != _tables(now)


def _needing(found: PointList) -> set[bytes]:
    return {point.session for point in found.committed}


def _tables(found: PointList) -> set[bytes]:
    return {table.session for table in found.moves}


class Either(Container[str]):
    """What is in one of two."""

    def __init__(self, one: Container[str], other: Container[str]) -> None:
        self._one, self._other = one, other

    def __contains__(self, name: object) -> bool:
        return name in self._one or name in self._other
