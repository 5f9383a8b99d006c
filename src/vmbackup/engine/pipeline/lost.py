"""Parts of the newest restore point whose packs are gone from the store: read again, although they are clean."""

from collections import Counter
from collections.abc import Iterable, Iterator

from vmbackup.errors import DamageError
from vmbackup.nbd.extents import Extent, Kind
from vmbackup.repository.crypto import DATA, META
from vmbackup.repository.maps import nodes
from vmbackup.repository.nodes import ZERO
from vmbackup.repository.records import MapRecord
from vmbackup.repository.run import Run

Part = tuple[int, int]  # first chunk, chunks


def lost_parts(run: Run, disk: MapRecord) -> list[Part]:
    """What of a disk's map lies in packs that `run` found lost, in order, neighbours joined.

    Raises DamageError where nodes of the map itself are lost.
    """
    if not run.lost:
        return []
    parts: list[Part] = []
    told: Counter[str] = Counter()
    for ref, first, node in nodes(run.placing.of_ref(disk.root), run.load_node(disk.chunk_size)):
        if problem := run.lost.problem(ref.session, META, ref.pack):
            where = run.ref(ref.session)
            key = run.catalog.lineage(where).pack(META, where.session, ref.pack)
            raise DamageError(problem.message, object_key=key)
        if node.level:
            continue
        at = first
        for entry in node.entries:
            problem = run.lost.problem(entry.session, DATA, entry.pack) if entry.session != ZERO else None
            if problem:
                parts.append((at, entry.chunks))
                if isinstance(problem, DamageError):
                    told[problem.message] += entry.chunks
                    run.reread.add(problem.object_key or "")
            at += entry.chunks
    run.warnings += (
        f"{message}: {chunks * disk.chunk_size} bytes of {disk.label} are read again; 'vmbackup verify' "
        "tells whether older restore points suffer"
        for message, chunks in told.items()
    )
    return _joined(sorted(parts))


def _joined(parts: list[Part]) -> list[Part]:
    joined: list[Part] = []
    for first, chunks in parts:
        if joined and sum(joined[-1]) == first:
            joined[-1] = joined[-1][0], joined[-1][1] + chunks
        else:
            joined.append((first, chunks))
    return joined


def uncovered(runs: Iterable[Extent], parts: Iterable[Part], chunk_size: int) -> Iterator[Extent]:
    """The runs, UNCHANGED ones cut so that what lies in `parts` is DATA. Both are in order and of whole chunks."""
    waiting = iter([(first * chunk_size, (first + chunks) * chunk_size) for first, chunks in parts])
    start, end = next(waiting, (0, 0))
    for run in runs:
        if run.kind != Kind.UNCHANGED:
            yield run
            continue
        at, run_end = run.offset, run.offset + run.length
        while at < run_end:
            while end and end <= at:
                start, end = next(waiting, (0, 0))
            if not end or start >= run_end:
                yield Extent(at, run_end - at, Kind.UNCHANGED)
                break
            if start > at:
                yield Extent(at, start - at, Kind.UNCHANGED)
                at = start
            stop = min(end, run_end)
            yield Extent(at, stop - at, Kind.DATA)
            at = stop
