"""One restore point, copied: decoded in memory and encoded anew for other keys, slot by slot for a replica."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vmbackup.engine.chain import typed_documents
from vmbackup.engine.identity import host_identity
from vmbackup.engine.pipeline.lost import lost_parts
from vmbackup.engine.pipeline.packing import VerifyUploads
from vmbackup.engine.pipeline.pipeline import DiskResult, Pipeline, default_workers, drop_disk
from vmbackup.engine.pipeline.slot_worker import SlotWorker
from vmbackup.engine.pipeline.worker import Worker
from vmbackup.engine.point_disk import PointDisk, SourceDamageError
from vmbackup.errors import DamageError, RepositoryError, VmbackupError
from vmbackup.progress import Progress
from vmbackup.repository.catalog import fetch
from vmbackup.repository.chunks import Secrets
from vmbackup.repository.crypto import digest
from vmbackup.repository.differences import DiskMap
from vmbackup.repository.layout import Lineage, copied_session
from vmbackup.repository.points import Point
from vmbackup.repository.records import MapRecord, files_to_json
from vmbackup.repository.repository import Repository, newest
from vmbackup.repository.run import Run
from vmbackup.repository.summary import PointSummary, summary

# What the other repository's point says of itself alone, or of its own place.
_OWN = ("anchor", "epoch", "envelope", "index", "next_session_number", "features", "parent", "locked_until")


def identity(repository: Repository, point: Point, *, of_realm: bool, target: bool) -> object:
    """What a point of the source and its copy in the target have in common, whoever else uses their names.

    In a replica (`of_realm`) the digest of the signed original, else the realm and the session that the copy tells.
    """
    if of_realm:
        return (point.original or point).digest
    return repository.origin_of(point, believed=target)


def order(point: Point) -> tuple[int, bytes]:
    """Oldest first, for a point and its copies alike."""
    return point.seq, point.origin


class PointCopy:
    """A copy of one point. `history`: all points of its guest in the source; `lacking`: those that failed before."""

    def __init__(
        self,
        source: Repository,
        target: Repository,
        point: Point,
        lineage: Lineage,
        history: Sequence[Point],
        lacking: Sequence[Point],
        progress: Progress,
    ) -> None:
        self._source, self._target, self._point, self._lineage = source, target, point, lineage
        self._lacking, self._progress = lacking, progress
        self._replica = source.config.realm == target.config.realm
        self._originals = {self._here(p): p for p in history}
        self._secrets = None if self._replica else Secrets(source, point.lineage.group)
        sizes = {record.chunk_size for record in point.maps} if self._replica else {target.config.chunk_size}
        self._chunk_size = max(sizes, default=target.config.chunk_size)
        if len(sizes) > 1:
            raise RepositoryError(
                f"the disks and files of {point.id} have chunks of several sizes", "copy to other keys instead"
            )

    def run(self, workers: int | None, verify: VerifyUploads, partial_bytes: int) -> PointSummary | None:
        """The copy; None where somebody else has made it meanwhile.

        Raises SourceDamageError, DamageError (of the target), RepositoryError, JobConflictError, StoreError.
        """
        try:
            return self._run(workers, verify, partial_bytes, distrust=False)
        except SourceDamageError:
            raise
        except DamageError as error:
            if error.object_key is None:
                raise
            self._progress.note(f"{error.message}; nothing is built on it")
            return self._run(workers, verify, partial_bytes, distrust=True)

    def _run(
        self, workers: int | None, verify: VerifyUploads, partial_bytes: int, *, distrust: bool
    ) -> PointSummary | None:
        point = self._point
        try:
            original = self._verbatim() if self._replica else b""
            documents = {} if self._replica else self._source.documents(point)
        except DamageError as error:
            raise SourceDamageError.of(error) from error
        run = Run.open(
            self._target,
            self._lineage,
            f"{host_identity()} copying",
            name=lambda: copied_session(point.session),
            choose=self._base,
        )
        run.partial_bytes = partial_bytes
        try:
            if self._is_there(run.points):
                run.abandon()
                return None
            run.look_elsewhere()
            results = self._transfer(run, workers or default_workers(), verify, distrust=distrust)
            if self._is_there(self._target.read_points(self._lineage).points):
                run.abandon()
                return None
            parent = self._earlier(run.points)
            public = (
                self._placed(results, run.session.id, parent)
                if self._replica
                else self._public(results, run.session.id, parent)
            )
            made = run.commit(public, typed_documents(documents), original)
        except BaseException:
            self._abandon(run)
            raise
        for warning in run.warnings:
            self._progress.note(warning)
        return summary(made, parent, written_bytes=run.stored_bytes)

    def _verbatim(self) -> bytes:
        """The original's signed object. Raises DamageError."""
        point = self._point
        data = point.verbatim or fetch(self._source.store, point.key)
        if digest(data) != (point.original or point).digest:
            raise DamageError(f"{point.key} is damaged: its digest differs", object_key=point.key)
        return data

    def _is_there(self, points: Sequence[Point]) -> bool:
        return any(self._there(p) == self._here(self._point) for p in points)

    def _here(self, point: Point) -> object:
        return identity(self._source, point, of_realm=self._replica, target=False)

    def _there(self, point: Point) -> object:
        return identity(self._target, point, of_realm=self._replica, target=True)

    def _earlier(self, points: Sequence[Point]) -> Point | None:
        """The newest there that is older than this one: its parent."""
        return max((p for p in points if order(p) < order(self._point)), key=order, default=None)

    def _base(self, points: list[Point]) -> Point | None:
        """The point there that the copy is made from: the nearest that the source still has, an older one first."""
        known = [p for p in points if self._there(p) in self._originals]
        later = min((p for p in known if order(p) > order(self._point)), key=order, default=None)
        return self._earlier(known) or later or newest(points)

    def _transfer(self, run: Run, workers: int, verify: VerifyUploads, *, distrust: bool) -> list[DiskResult]:
        point, task = self._point, f"{self._point.domain} {self._point.id}"
        old = {m.name: m for m in run.parent.maps} if run.parent and not distrust else {}
        if distrust:
            run.uses.clear()

        def between(covered: int) -> None:
            self._progress.advance(task, covered)
            run.keep_partial()

        self._progress.start(task, sum(m.virtual_size for m in point.maps))
        worker = SlotWorker if self._replica else Worker
        try:
            with Pipeline(
                run, self._chunk_size, workers=workers, verify=verify, between=between, worker=worker
            ) as pipeline:
                results = [self._map_of(pipeline, run, record, old.get(record.name)) for record in point.maps]
                for name in old.keys() - {record.name for record in point.maps}:
                    drop_disk(run, old[name])
                pipeline.finish()
                run.flush_meta()
        finally:
            self._progress.finish(task)
        return results

    def _map_of(self, pipeline: Pipeline, run: Run, disk: MapRecord, old: MapRecord | None) -> DiskResult:
        if old is not None and old.chunk_size != self._chunk_size:
            drop_disk(run, old)
            old = None
        whole = PointDisk(self._map(self._point, disk), None, self._secrets)
        if old is None:
            return pipeline.read_disk(whole, None, None)
        lost = lost_parts(run, old)
        if old.virtual_size > disk.virtual_size:  # its map cannot be kept, its chunks are found by place
            drop_disk(run, old)
            return pipeline.read_disk(whole, None, old.root, lost)
        changed = PointDisk(self._map(self._point, disk), self._original_of(run, disk), self._secrets)
        return pipeline.read_disk(changed, old.root, old.root, lost)

    def _original_of(self, run: Run, disk: MapRecord) -> DiskMap | None:
        """The source's map of it at the time that the copy is made from."""
        original = self._originals.get(self._there(run.parent)) if run.parent else None
        for record in original.maps if original else []:
            if (record.name, record.chunk_size) == (disk.name, disk.chunk_size) and original is not None:
                return self._map(original, record)
        return None

    def _map(self, point: Point, disk: MapRecord) -> DiskMap:
        return DiskMap(self._source.catalog(point.lineage.group), point, disk)

    def _public(self, results: Sequence[DiskResult], session: bytes, parent: Point | None) -> dict[str, Any]:
        """What the original says, with the maps and the place in history of the copy."""
        return {
            **{name: value for name, value in self._point.public.items() if name not in _OWN},
            "anchor": None,
            "parent": _named(parent),
            **self._maps(results, session),
            "copied_from": self._copied_from(*self._source.origin_of(self._point)),
        }

    def _placed(self, results: Sequence[DiskResult], session: bytes, parent: Point | None) -> dict[str, Any]:
        """What a replica's copy says beside its original, which is of this realm, whatever that is a copy of."""
        original = self._point.original or self._point
        realm = self._source.config.realm.hex()
        return {
            "parent": _named(parent),
            **self._maps(results, session),
            "original": self._copied_from(realm, original.session.hex()) | {"digest": original.digest.hex()},
        }

    def _maps(self, results: Sequence[DiskResult], session: bytes) -> dict[str, Any]:
        """The disks and files, where their maps lie now."""
        point, size = self._point, self._chunk_size
        disks = [
            replace(disk, root=made.root, chunk_size=size, stored_bytes=made.counts.stored)
            for disk, made in zip(point.disks, results, strict=False)
        ]
        files = [
            replace(file, root=made.root, chunk_size=size, stored_bytes=made.counts.stored)
            for file, made in zip(point.files, results[len(disks) :], strict=True)
        ]
        return {
            "disks": [disk.to_json() for disk in disks],
            "files": files_to_json(session, files) if files else None,
        }

    def _copied_from(self, realm: str, session: str) -> dict[str, Any]:
        return {
            "realm": realm,
            "repository": self._source.config.repository.hex(),
            "session": session,
            "lacking": [p.origin.hex() for p in self._lacking],
        }

    def _abandon(self, run: Run) -> None:
        try:
            run.abandon()
        except (VmbackupError, OSError) as error:
            self._progress.note(f"what the failed copy stored is looked after by the next one ({error})")


def _named(parent: Point | None) -> dict[str, str] | None:
    return {"session": parent.session.hex(), "digest": parent.digest.hex()} if parent else None
