"""The tables of history, and what is read from and written to them."""

import json
import sqlite3
from dataclasses import asdict
from typing import Any

from vmbackup.daemon.digest import Counts
from vmbackup.daemon.history_rows import COLUMNS, Batch, Kept, Last, Row
from vmbackup.daemon.snapshot import LastRun
from vmbackup.daemon.work import Kind, Work
from vmbackup.sqlite import transaction

RUN_DAYS, RUN_ROWS = 90, 100_000  # what is kept of runs: about 60 MB at most
_VERSION = 1
_APPLICATION = 0x766D6268  # "vmbh"
_SETTINGS = (
    "PRAGMA trusted_schema=OFF",
    "PRAGMA cell_size_check=ON",
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",  # after a power loss all that was told is there
    "PRAGMA journal_size_limit=8388608",
)
_RUNS = """CREATE TABLE runs (
    id TEXT NOT NULL, started REAL NOT NULL, kind TEXT NOT NULL, repository TEXT NOT NULL, job TEXT, domain TEXT,
    target TEXT, trigger TEXT NOT NULL, attempt INTEGER NOT NULL, due REAL NOT NULL, finished REAL, status TEXT,
    exit_code INTEGER, error TEXT, hint TEXT, error_kind TEXT, details TEXT NOT NULL, PRIMARY KEY (id, started)
) STRICT"""
_SCHEMA = (
    _RUNS,
    "CREATE INDEX ended ON runs (finished)",
    "CREATE INDEX of_domain ON runs (domain, finished)",
    "CREATE TABLE lasts (work TEXT PRIMARY KEY, run TEXT NOT NULL, success REAL NOT NULL) STRICT, WITHOUT ROWID",
    "CREATE TABLE totals (guest TEXT PRIMARY KEY, counts TEXT NOT NULL) STRICT, WITHOUT ROWID",
    "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID",
)
_SELECT = f"SELECT {', '.join(COLUMNS)} FROM runs"  # noqa: S608 (names of ours)
_PUT_RUN = f"INSERT OR REPLACE INTO runs VALUES ({', '.join(f':{name}' for name in COLUMNS)})"  # noqa: S608


class OtherFileError(sqlite3.DatabaseError):
    """The file is sound, and not of this version."""


def prepare(connection: sqlite3.Connection) -> None:
    """Makes the tables of an empty file. Raises DatabaseError for one that is damaged, newer or not ours."""
    for setting in _SETTINGS:
        connection.execute(setting)
    with transaction(connection):
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        if not tables and not version:
            for statement in _SCHEMA:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version={_VERSION}")
            connection.execute(f"PRAGMA application_id={_APPLICATION}")
            return
    if application != _APPLICATION or version < 1:
        raise OtherFileError("it is no history of vmbackup's")
    if version > _VERSION:
        raise OtherFileError(f"it is of version {version}, newer than this vmbackup knows")
    if (found := connection.execute("PRAGMA quick_check(1)").fetchone()) != ("ok",):
        raise OtherFileError(f"it is damaged: {str(found[0]).splitlines()[-1]}")


def load(connection: sqlite3.Connection) -> Kept:
    """All but the runs that have ended. Raises DatabaseError for rows that no vmbackup wrote."""
    lasts, totals = _all(connection, "lasts"), _all(connection, "totals")
    unfinished = [Row(*row) for row in connection.execute(f"{_SELECT} WHERE finished IS NULL")]
    try:
        return Kept(
            {_work(name): Last(LastRun(**json.loads(run)), success) for name, run, success in lasts},
            {_guest(name): Counts(**json.loads(counts)) for name, counts in totals},
            dict(_all(connection, "facts")),
            unfinished,
        )
    except (ValueError, TypeError) as error:
        raise OtherFileError("its rows are not vmbackup's") from error


def recent(connection: sqlite3.Connection, limit: int, domain: str | None) -> list[Row]:
    """Runs that have ended, newest first."""
    where, values = ("domain = ? AND", (domain,)) if domain is not None else ("", ())
    query = f"{_SELECT} WHERE {where} finished IS NOT NULL ORDER BY finished DESC LIMIT ?"
    return [Row(*row) for row in connection.execute(query, (*values, limit))]


def _all(connection: sqlite3.Connection, table: str) -> list[Any]:
    return connection.execute(f"SELECT * FROM {table}").fetchall()  # noqa: S608 (a name of ours)


def _work(name: str) -> Work:
    kind, *places = json.loads(name)
    return Work(Kind(kind), *places)


def _guest(name: str) -> tuple[str, str, str]:
    domain, job, repository = json.loads(name)
    return domain, job, repository


def put(connection: sqlite3.Connection, batch: Batch) -> None:
    """Writes what a batch holds."""
    connection.executemany(_PUT_RUN, [vars(row) for row in batch.runs.values()])
    for work, last in batch.lasts.items():
        name = json.dumps([work.kind.value, work.repository, work.job, work.domain, work.target])
        connection.execute("DELETE FROM lasts WHERE work = ?", (name,))
        if last is not None:
            run = json.dumps(asdict(last.run))
            connection.execute("INSERT INTO lasts VALUES (?, ?, ?)", (name, run, last.success))
    for guest, counts in batch.totals.items():
        connection.execute("DELETE FROM totals WHERE guest = ?", (json.dumps(guest),))
        if counts is not None:
            connection.execute("INSERT INTO totals VALUES (?, ?)", (json.dumps(guest), json.dumps(asdict(counts))))
    connection.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", list(batch.facts.items()))


def trim(connection: sqlite3.Connection, now: float) -> None:
    """Drops runs that are too old, or too many."""
    oldest = now - RUN_DAYS * 86400
    connection.execute("DELETE FROM runs WHERE finished < ?", (oldest,))
    newest = "SELECT rowid FROM runs ORDER BY rowid DESC LIMIT 1 OFFSET ?"
    connection.execute(f"DELETE FROM runs WHERE rowid <= ({newest}) AND finished IS NOT NULL", (RUN_ROWS,))  # noqa: S608


def is_broken(error: Exception) -> bool:
    """Whether the file itself is of no use: not one that is held by others, or has no room."""
    if isinstance(error, OtherFileError):
        return True
    code = getattr(error, "sqlite_errorcode", None)
    broken = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_SCHEMA, sqlite3.SQLITE_ERROR)
    return code is not None and code & 0xFF in broken
