"""Copying restore points to another repository: what it lacks of each guest, oldest first."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vmbackup.engine.chain import SOURCE
from vmbackup.engine.pipeline.packing import VerifyUploads
from vmbackup.engine.point_disk import SourceDamageError
from vmbackup.engine.replica.point_copy import PointCopy, identity, order
from vmbackup.errors import DamageError, NotFoundError, RepositoryError, TargetError, UsageError, VmbackupError
from vmbackup.progress import Progress
from vmbackup.repository import residency
from vmbackup.repository.keys import Secret
from vmbackup.repository.layout import ORIGIN_BYTES, Lineage, short_id
from vmbackup.repository.points import Point
from vmbackup.repository.replica import follow
from vmbackup.repository.repository import PointList, Repository
from vmbackup.repository.resolve import place_of
from vmbackup.repository.run import PARTIAL_BYTES
from vmbackup.repository.summary import PointSummary


@dataclass(frozen=True)
class CopyOptions:
    """How points are copied. `locks`: a folder of this host's, for one copy of a guest at a time.

    `secret` gives what opens the target, where new keys of its realm are brought there.
    """

    locks: Path
    verify_uploads: VerifyUploads = "sample"
    workers: int | None = None
    partial_bytes: int = PARTIAL_BYTES
    secret: Callable[[], Secret] | None = None


@dataclass(frozen=True)
class History:
    """A guest's restore points in the repository that is copied from, oldest first; `unread` those that are damaged."""

    domain: str
    lineage: Lineage
    points: tuple[Point, ...]
    unread: tuple[DamageError, ...] = ()


@dataclass
class Copied:
    """What became of a history: how many points the target had, or was to have no more, and those that failed."""

    skipped: int = 0
    failed: list[tuple[str, VmbackupError]] = field(default_factory=list)


class Copier:
    """Copies from one open repository to another."""

    def __init__(self, source: Repository, target: Repository, options: CopyOptions, progress: Progress) -> None:
        """What the realm signed lately is brought to a replica.

        Raises UsageError (both are one), RepositoryError (a replica of something else, a place that is not allowed),
        AccessError, DamageError.
        """
        if source.config.repository == target.config.repository:
            raise UsageError("both names lead to one repository", "name another one to copy to")
        residency.check(source.config.allowed_endpoints, target.store.place)
        self._replica = source.config.realm == target.config.realm
        if target.config.document["replica_of"] and not self._replica:
            raise RepositoryError(
                f"{target.store.url} is a replica of another repository than {source.store.url}, with other keys",
                "copy from the repository that it is a replica of, or make a new one with 'vmbackup init'",
            )
        if self._replica:
            for name in follow(source, target, options.secret):
                progress.note(f"'{name}' is revoked in {source.store.url}: run 'key revoke-writer' for the replica too")
        else:
            source.check_may_read()
        self._source, self._target, self._options, self._progress = source, target, options, progress

    def histories(self, domains: Sequence[str] = ()) -> list[History]:
        """What there is to copy: of these domains (names or UUIDs), or all. Raises NotFoundError."""
        found = self._source.survey()
        known = {text for point in found.points for text in (point.domain, point.uuid)}
        for name in domains:
            if name not in known:
                raise NotFoundError(
                    f"{self._source.store.url} has no restore point of a domain '{name}'",
                    "'vmbackup list' shows what there is",
                )
        wanted = {p.lineage for p in found.points if not domains or {p.domain, p.uuid} & set(domains)}
        return [_history(found, lineage) for lineage in sorted(wanted, key=lambda w: (w.group, w.id))]

    def copy(self, history: History, told: Callable[[PointSummary], None]) -> Copied:
        """Copies what the target lacks of a history; `told` is called for each point that is durable there.

        A point that is damaged where it is copied from is left out, and said so. Raises VmbackupError, StoreError.
        """
        done = Copied(failed=[(_name_of(error), error) for error in history.unread])
        lineage = self._lineage(history)
        with self._locked(history, lineage):
            there = self._target.read_points(lineage)
            forgotten = {session[:ORIGIN_BYTES] for session in there.forgotten} - _lacking(there.points)
            present = {self._identity(self._target, p) for p in there.points}
            lacking: list[Point] = []
            for point in history.points:
                if self._identity(self._source, point) in present or point.origin in forgotten:
                    done.skipped += 1
                elif (error := self._copy_one(point, lineage, history, lacking, done, told)) is not None:
                    lacking.append(point)
                    done.failed.append((point.id, error))
        return done

    def _identity(self, repository: Repository, point: Point) -> object:
        return identity(repository, point, of_realm=self._replica, target=repository is self._target)

    def _copy_one(
        self,
        point: Point,
        lineage: Lineage,
        history: History,
        lacking: Sequence[Point],
        done: Copied,
        told: Callable[[PointSummary], None],
    ) -> VmbackupError | None:
        """Copies a point, or gives the damage in the source that keeps it from being copied."""
        make = PointCopy(self._source, self._target, point, lineage, history.points, lacking, self._progress)
        try:
            made = make.run(self._options.workers, self._options.verify_uploads, self._options.partial_bytes)
        except SourceDamageError as error:
            if point.session in self._source.read_points(point.lineage).forgotten:
                done.skipped += 1  # forgotten, and collected, while it was copied
                return None
            return error
        if made is None:
            done.skipped += 1
        else:
            told(made)
        return None

    def _lineage(self, history: History) -> Lineage:
        """Where the copies lie: a group of the same name if the target has one, else that of its key."""
        if self._replica:
            return history.lineage
        group = history.lineage.group if history.lineage.group in self._target.groups() else None
        return self._target.lineage(SOURCE, history.points[-1].uuid, group)

    @contextlib.contextmanager
    def _locked(self, history: History, lineage: Lineage) -> Iterator[None]:
        """One copy of a guest at a time on this host: what another one left there is dead."""
        path = self._options.locks / f"{self._target.id}-{lineage.id.hex()}.lock"
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise TargetError(f"the lock {path} cannot be opened: {error.strerror}", "run this as root") from error
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._progress.note(f"waiting for another copy of {history.domain} to end")
                fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _history(found: PointList, lineage: Lineage) -> History:
    points = sorted((p for p in found.points if p.lineage == lineage), key=order)
    unread = [e for e in found.damaged if (place := place_of(e)) is not None and place[0] == lineage]
    return History(points[-1].domain, lineage, tuple(points), tuple(unread))


def _name_of(error: DamageError) -> str:
    """The 8 digits of a point that cannot be read."""
    place = place_of(error)
    return short_id(place[1]) if place else ""


def _lacking(points: Sequence[Point]) -> set[bytes]:
    """The origins that the newest copy says could not be copied before it."""
    copies = [p for p in points if p.copied_from]
    newest = max(copies, key=order, default=None)
    told = newest.copied_from if newest else None
    return {bytes.fromhex(text) for text in told.get("lacking", ())} if told else set()
