"""Two hosts and one guest: at most one of them backs it up at a time."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vmbackup.errors import JobConflictError
from vmbackup.repository.layout import Lineage
from vmbackup.repository.moves import PIN_FIELD
from vmbackup.repository.repository import PointList
from vmbackup.repository.session import Session
from vmbackup.storage_backends import Store

# Another host's session of the same guest that is older than this is taken for dead: both committing is harmless.
RIVAL_SECONDS = 3600.0
# A session pinned this much earlier, by the store's clock, has looked for rivals and found none; seconds.
_SETTLED = 30.0
# How often, and every how many seconds, a rival of a higher id is given a chance to give way.
_LOOKS, _LOOK = 20, 0.5


class _Rival(NamedTuple):
    """Another host's open session; `modified` by the store's clock."""

    session: bytes
    modified: float
    host: str


class Rivals:
    """What a run that has pinned `main` sees of other backups of its guest.

    `pin_of` reads a pin; {} where it cannot be read.
    """

    def __init__(
        self, store: Store, lineage: Lineage, main: Session, pin_of: Callable[[bytes], Mapping[str, Any]]
    ) -> None:
        self._store, self._lineage, self._main, self._pin_of = store, lineage, main, pin_of
        self._warnings: list[str] = []

    def give_way(self, found: PointList, wait: Callable[[float], None]) -> list[str]:
        """Warns of sessions that seem to be dead. Raises JobConflictError where another host's backup goes on.

        Who came later gives way, and of two at one time the higher id does. A lower id of ours says nothing of a rival
        that had looked before we pinned, as when our clock is behind: one that does not give way itself, in the time it
        has for that, was first.
        """
        rivals = self._seen(found)
        before = self._main.pinned_at() - _SETTLED if rivals else 0.0
        for _ in range(_LOOKS):
            if not rivals or any(each.modified < before or each.session < self._main.id for each in rivals):
                break
            wait(_LOOK)
            rivals = [each for each in rivals if self._is_open(each.session)]
        if rivals:
            raise JobConflictError(
                f"another host, {rivals[0].host}, is backing this guest up at this moment",
                "let it finish; a guest that runs on two hosts at once is in danger",
            )
        return self._warnings

    def _seen(self, found: PointList) -> list[_Rival]:
        rivals = []
        for entry in self._store.list(self._lineage.prefix("sessions")):
            session = bytes.fromhex(entry.key.rsplit("/", 1)[1])
            if session == self._main.id or found.has_ended(self._lineage, session):
                continue
            pin = self._pin_of(session)
            if PIN_FIELD in pin:  # no backup, but a repacking: nobody is in its way
                continue
            if time.time() - entry.modified > RIVAL_SECONDS:
                self._warnings.append(f"another host began a backup of this guest and never ended it ({entry.key})")
                continue
            rivals.append(_Rival(session, entry.modified, str(pin.get("host", "")).partition("/")[0] or "?"))
        return rivals

    def _is_open(self, session: bytes) -> bool:
        """Whether a session is pinned, and has neither committed nor given up."""
        name = session.hex()
        if not any(self._store.list(self._lineage.prefix("sessions") + name)):
            return False
        return not any(self._store.list(self._lineage.prefix("points") + name))
