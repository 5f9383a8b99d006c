"""Parts of the newest restore point whose packs are gone from the store: read again, although they are clean."""

from collections.abc import Iterable, Iterator

from vmbackup.errors import DamageError
from vmbackup.nbd.extents import Extent, Kind
from vmbackup.repository.crypto import DATA, META
from vmbackup.repository.maps import extents, nodes
from vmbackup.repository.nodes import ZERO
from vmbackup.repository.points import DiskRecord
from vmbackup.repository.run import Run

Part = tuple[int, int]  # first chunk, chunks


def lost_parts(run: Run, disk: DiskRecord) -> list[Part]:
    """What of a disk's map lies in packs that `run` found lost, in order, neighbours joined.

    Raises DamageError where nodes of the map itself are lost.
    """
    if not run.lost:
        return []
    load = run.load_node(disk.chunk_size)
    for ref, _ in nodes(disk.root, load):
        if problem := run.lost.problem(ref.session, META, ref.pack):
            raise DamageError(problem.message, object_key=problem.object_key)
    parts: list[Part] = []
    told: dict[str, int] = {}
    for extent in extents(disk.root, load):
        problem = run.lost.problem(extent.session, DATA, extent.pack) if extent.session != ZERO else None
        if problem:
            told[problem.message] = told.get(problem.message, 0) + extent.chunks
            if parts and sum(parts[-1]) == extent.first:
                parts[-1] = parts[-1][0], parts[-1][1] + extent.chunks
            else:
                parts.append((extent.first, extent.chunks))
    for message, chunks in told.items():
        run.warnings.append(
            f"{message}: {chunks * disk.chunk_size} bytes of disk {disk.target} are read again; older restore points "
            "that need it stay damaged ('vmbackup verify' names them)"
        )
    return parts


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
