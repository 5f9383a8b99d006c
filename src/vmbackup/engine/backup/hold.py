"""A hold on what a group stores: while a point is served for hours it may be forgotten, and nothing of it goes.

A prune waits for open sessions and deletes nothing that they may rely on (rules W1 and C4 of the repository's format).
A hold is the pin of a session that stores nothing. It dies with its process on this host, and is renewed each day:
elsewhere a session is taken for dead after a week.
"""

import contextlib
import os
import threading
from types import TracebackType
from typing import Self

from vmbackup.errors import VmbackupError
from vmbackup.progress import Progress
from vmbackup.repository.layout import Lineage
from vmbackup.repository.moves import PIN_FIELD
from vmbackup.repository.processes import process_mark
from vmbackup.repository.repository import Repository
from vmbackup.repository.session import Session
from vmbackup.storage_backends import StoreError

_DAY = 86400.0  # seconds
_LINEAGE_BYTES = 16


class Hold:
    """A context manager; what is read after it was entered stays. Where the store takes no pin that is said."""

    def __init__(
        self, repository: Repository, group: str, host: str, progress: Progress, *, every: float = _DAY
    ) -> None:
        self._repository, self._host, self._progress, self._every = repository, host, progress, every
        # A history of its own: in that of a guest a backup would give way to it.
        self._lineage = Lineage(group, os.urandom(_LINEAGE_BYTES))
        self._session: Session | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="hold", daemon=True)

    def __enter__(self) -> Self:
        self._session = self._pinned()
        if self._session is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        self._drop()

    def _pinned(self) -> Session | None:
        try:
            session = Session(self._repository, self._lineage, 0, self._host)
            session.pin(**{PIN_FIELD: process_mark()})
        except (StoreError, VmbackupError) as error:
            text = "a prune may take what is served, once it is forgotten: no session can be opened"
            self._progress.note(f"{text} ({error})")
            return None
        return session

    def _renew(self) -> None:
        while not self._over.wait(self._every):
            session = self._pinned()
            if session is not None:
                self._drop()
                self._session = session

    def _drop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            with contextlib.suppress(StoreError, VmbackupError):  # a prune ends it in a week
                session.give_up()
