"""What a host remembers of a repository to save reading: a SQLite file that may be lost at any time.

Nothing in it is trusted: a point is authenticated again, a hook leads to a header that is. A file that is damaged, held
by others, or cannot be written costs reading and storage, never data or a run.
"""

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vmbackup.sqlite import transaction

# The schema, and its version: a file with any other one is made anew.
_SCHEMA = (
    "CREATE TABLE points (key TEXT PRIMARY KEY, size INTEGER, modified REAL, body BLOB, proofs BLOB)",
    "CREATE TABLE sessions (number INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB UNIQUE, hooks INTEGER)",
    "CREATE TABLE members (session INTEGER, grp TEXT, lineage BLOB, PRIMARY KEY (session, grp, lineage)) WITHOUT ROWID",
    "CREATE INDEX lineages ON members (grp, lineage)",
    "CREATE TABLE sources (grp TEXT, lineage BLOB, newest BLOB, PRIMARY KEY (grp, lineage)) WITHOUT ROWID",
    "CREATE TABLE hooks (hook INTEGER, session INTEGER, pack INTEGER, PRIMARY KEY (hook, session, pack)) WITHOUT ROWID",
    "CREATE TABLE incoming (hook INTEGER, session INTEGER, pack INTEGER)",
    "CREATE TABLE facts (name TEXT PRIMARY KEY, value REAL) WITHOUT ROWID",
)
_VERSION = 2
_APPLICATION = 0x766D626B  # "vmbk"
# Other processes write for some ms at a time, one that joins a large repository for seconds.
_BUSY_SECONDS = 30.0
# SQLite does not wait by itself where two processes make the file at once.
_PAUSE_SECONDS = 0.02
_SETTINGS = (
    "PRAGMA trusted_schema=OFF",
    "PRAGMA cell_size_check=ON",
    "PRAGMA synchronous=NORMAL",
    "PRAGMA cache_size=-16384",
    "PRAGMA journal_size_limit=67108864",
)

Row = tuple[Any, ...]


class Cache:
    """One file a repository; without a path it remembers nothing. Shared by threads; other processes use it too.

    `problem` says in a sentence why it is used no more, "" while it is.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.problem = ""
        self._path = path
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        if path is not None:
            with self._guarded():
                self._connection = self._opened(path)

    @classmethod
    def of(cls, folder: Path, repository: bytes) -> "Cache":
        """The file of a repository in the cache folder."""
        return cls(folder / f"{repository.hex()}.sqlite")

    def __bool__(self) -> bool:
        return self._connection is not None

    def close(self) -> None:
        """Closes the file; nothing is remembered from here on."""
        with self._lock:
            if self._connection is not None:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.close()
                self._connection = None

    def _opened(self, path: Path) -> sqlite3.Connection:
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                connection = self._connect(path)
                path.chmod(0o600)
                return connection
            except sqlite3.DatabaseError as error:
                broken = _is_broken(error)
                if time.monotonic() > deadline or not (broken or _is_busy(error)):
                    raise
                if broken:
                    _remove(path)
                time.sleep(_PAUSE_SECONDS)

    def _connect(self, path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            for setting in _SETTINGS:
                connection.execute(setting)
            _check_schema(connection)
            connection.execute("PRAGMA journal_mode=WAL")
        except BaseException:
            connection.close()
            raise
        return connection

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """What goes wrong with the file ends its use, and nothing else."""
        with self._lock:
            try:
                yield
            except (sqlite3.Error, OSError, OverflowError) as error:
                self.problem = f"the cache {self._path} cannot be used ({error}): more is read and stored"
                self.close()
                if self._path and isinstance(error, sqlite3.DatabaseError) and _is_broken(error):
                    with contextlib.suppress(OSError):
                        _remove(self._path)

    def rows(self, query: str, values: Sequence[object] = ()) -> list[Row]:
        """The answer to a query; none where the file cannot be used."""
        found: list[Row] = []
        if self._connection is not None:
            with self._guarded():
                if self._connection is not None:
                    found = self._connection.execute(query, values).fetchall()
        return found

    def change(self, *steps: tuple[str, Iterable[Sequence[object]]]) -> None:
        """Statements, each for several rows of values, all or none."""
        if self._connection is None:
            return
        with self._guarded():
            if self._connection is not None:
                with transaction(self._connection):
                    for statement, values in steps:
                        self._connection.executemany(statement, values)


def _check_schema(connection: sqlite3.Connection) -> None:
    """Makes the tables of an empty file. Raises DatabaseError for a file with others: views and triggers run code."""
    with transaction(connection):
        found = {sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")}
        found = {sql for sql in found if sql != "CREATE TABLE sqlite_sequence(name,seq)"}
        if not found:
            for statement in _SCHEMA:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version={_VERSION}")
            connection.execute(f"PRAGMA application_id={_APPLICATION}")
        elif found != set(_SCHEMA) or connection.execute("PRAGMA user_version").fetchone() != (_VERSION,):
            raise _OtherSchemaError("file is not a cache of this version")


class _OtherSchemaError(sqlite3.DatabaseError):
    pass


def _is_broken(error: sqlite3.DatabaseError) -> bool:
    """Whether the file itself is of no use: not one that is held by others, full or read-only."""
    code = getattr(error, "sqlite_errorcode", None)
    broken = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    return isinstance(error, _OtherSchemaError) or (code is not None and code & 0xFF in broken)


def _is_busy(error: sqlite3.DatabaseError) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
