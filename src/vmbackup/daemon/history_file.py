"""The file of history: SQLite. Whatever is wrong with it is told, and never stops the service.

A file that is damaged, of a newer version or not ours is moved aside and made anew; one that cannot be written for the
moment (disk full) is tried again.
"""

import contextlib
import errno
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from vmbackup.daemon import history_sql as sql
from vmbackup.daemon.history_rows import Batch, Kept, Row
from vmbackup.sqlite import transaction

_BUSY_SECONDS = 5.0  # others only look at it for moments
_RETRY_SECONDS = 60.0  # between attempts to open a file that cannot be used
_TRIM_EVERY = 500  # writes
_ASIDE = 3  # files that were moved aside and are kept: a bad disk must not fill itself
_log = logging.getLogger("vmbackup.daemon.history")


class HistoryFile:
    """One connection, for one thread at a time: its owner holds a lock."""

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._clock, self._monotonic = path, clock, monotonic
        self._connection: sqlite3.Connection | None = None
        self._tried: float | None = None
        self._writes = 0
        self.problem = ""

    def load(self) -> Kept:
        """All that is in it but the runs that have ended; nothing where it cannot be used."""
        kept = self._opened(sql.load)
        return kept if isinstance(kept, Kept) else Kept()

    def save(self, batch: Batch, everything: Callable[[], Batch]) -> bool:
        """Writes all or nothing; `everything` is what a file that was made anew needs. False where it must be kept."""
        if self._connection is None:
            if self._tried is not None and self._monotonic() - self._tried < _RETRY_SECONDS:
                return False
            return bool(self._opened(lambda c: self._write(c, everything())))
        try:
            return self._write(self._connection, batch)
        except (ValueError, OverflowError):
            _log.exception("history cannot hold this: it is left out")
            return True
        except (sqlite3.Error, OSError) as error:
            self._failed(error)
            if not sql.is_broken(error):
                return False
        self._drop()
        return bool(self._opened(lambda c: self._write(c, everything())))

    def recent(self, limit: int, domain: str | None) -> list[Row]:
        """Runs that have ended, newest first."""
        if self._connection is None:
            return []
        try:
            return sql.recent(self._connection, limit, domain)
        except (sqlite3.Error, OSError) as error:
            self._failed(error)
            return []

    def close(self) -> None:
        """Nothing is written from here on."""
        self._drop()
        self._tried = float("inf")

    def _opened(self, use: Callable[[sqlite3.Connection], object]) -> object:
        """What `use` makes of the file, opened; a file of no use is moved aside first. None where it is of none now."""
        self._tried = self._monotonic()
        for attempt in (1, 2):
            try:
                self._connection = self._connect()
                return use(self._connection)
            except (sqlite3.Error, OSError) as error:
                self._drop()
                self._failed(error)
                if attempt == 2 or not (sql.is_broken(error) or _is_foreign(self._path)) or not self._move_aside(error):
                    return None
        return None

    def _connect(self) -> sqlite3.Connection:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))  # nobody else may read it
        connection = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            sql.prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _write(self, connection: sqlite3.Connection, batch: Batch) -> bool:
        with transaction(connection):
            sql.put(connection, batch)
            self._writes += 1
            if self._writes % _TRIM_EVERY == 1:
                sql.trim(connection, self._clock())
        if self.problem:
            self.problem = ""
            _log.warning("history %s can be written again", self._path)
        return True

    def _failed(self, error: Exception) -> None:
        text = str(error) or type(error).__name__
        if not self.problem:
            _log.warning("history %s cannot be used (%s): the service goes on without", self._path, text)
        self.problem = text

    def _move_aside(self, why: Exception) -> bool:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._clock()))
        aside = self._path.with_name(f"{self._path.name}.aside-{stamp}")
        try:
            os.replace(self._path, aside)
            for suffix in ("-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(f"{self._path}{suffix}", f"{aside}{suffix}")
        except OSError as error:
            _log.warning("history %s cannot be moved aside either: %s", self._path, error.strerror)
            return False
        _log.warning("history %s was moved aside to %s (%s), and is made anew", self._path, aside.name, why)
        self._thin_out()
        return True

    def _thin_out(self) -> None:
        asides = sorted(self._path.parent.glob(f"{self._path.name}.aside-*Z"))
        for old in asides[:-_ASIDE]:
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(OSError):
                    os.unlink(f"{old}{suffix}")

    def _drop(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None


def _is_foreign(path: Path) -> bool:
    """Whether something stands there that this process may never write: another user's file, a folder."""
    try:
        os.close(os.open(path, os.O_RDWR))
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EPERM, errno.EISDIR)
    return False
