"""Reading a disk's map, and making the next one out of it and of what changed."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from vmbackup.repository.nodes import (
    INNER_ENTRIES,
    KEEP,
    LEAF_ENTRIES,
    LEAF_SPAN,
    ZERO,
    Node,
    Ref,
    Run,
    zero_ref,
)

Load = Callable[[Ref, int], Node]  # (reference, first chunk) -> node
Store = Callable[[Node], Ref]


class Extent(NamedTuple):
    """A run at its place in the disk: `first` counts chunks."""

    first: int
    chunks: int
    session: int
    pack: int
    slot: int


def extents(root: Ref, load: Load, start: int = 0, end: int | None = None) -> Iterator[Extent]:
    """The runs of a map in the order of the disk, clipped to [start, end) chunks. Streamed: one path is held."""
    yield from _extents(root, 0, load, start, root.chunks if end is None else min(end, root.chunks))


def _extents(ref: Ref, first: int, load: Load, start: int, end: int) -> Iterator[Extent]:
    if first >= end or first + ref.chunks <= start:
        return
    if ref.session == ZERO:
        low = max(first, start)
        yield Extent(low, min(first + ref.chunks, end) - low, ZERO, 0, 0)
        return
    for entry in load(ref, first).entries:
        if isinstance(entry, Ref):
            yield from _extents(entry, first, load, start, end)
        elif first < end and first + entry.chunks > start:
            skip = max(0, start - first)
            count = min(first + entry.chunks, end) - first - skip
            yield Extent(first + skip, count, entry.session, entry.pack, entry.slot + skip if entry.session else 0)
        first += entry.chunks


def backwards(root: Ref, load: Load) -> Iterator[Extent]:
    """The runs of a map that have storage, from the disk's end to its beginning. Streamed."""
    yield from _backwards(root, 0, load)


def _backwards(ref: Ref, first: int, load: Load) -> Iterator[Extent]:
    if ref.session == ZERO:
        return
    at = first + ref.chunks
    entries: list[Run | Ref] = list(load(ref, first).entries)
    for entry in reversed(entries):
        at -= entry.chunks
        if isinstance(entry, Ref):
            yield from _backwards(entry, at, load)
        elif entry.session != ZERO:
            yield Extent(at, *entry)


def nodes(root: Ref, load: Load) -> Iterator[tuple[Ref, int, Node]]:
    """All nodes below and at `root` with their first chunks, parents first; siblings in no order."""
    stack = [(root, 0)]
    while stack:
        ref, first = stack.pop()
        if ref.session == ZERO:
            continue
        node = load(ref, first)
        yield ref, first, node
        for entry in node.entries:
            if isinstance(entry, Ref):
                stack.append((entry, first))
            first += entry.chunks


class _Cursor:
    """Coalesces runs, and hands them out by numbers of chunks."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self._runs = iter(runs)
        self._current: Run | None = next(self._runs, None)
        self._next: Run | None = next(self._runs, None)
        self._merge()

    def _merge(self) -> None:
        current, following = self._current, self._next
        while current is not None and following is not None and _adjacent(current, following):
            current = current._replace(chunks=current.chunks + following.chunks)
            following = next(self._runs, None)
        self._current, self._next = current, following

    def keeps(self, chunks: int) -> bool:
        """Whether the next `chunks` chunks are all as they were."""
        return self._current is not None and self._current.session == KEEP and self._current.chunks >= chunks

    def take(self, chunks: int) -> Iterator[Run]:
        """Runs of exactly that many chunks."""
        while chunks:
            current = self._current
            if current is None:
                raise ValueError("the runs end before the disk does")
            count = min(chunks, current.chunks)
            yield current._replace(chunks=count)
            chunks -= count
            if count < current.chunks:
                slot = current.slot + count if current.session > ZERO else 0
                self._current = current._replace(chunks=current.chunks - count, slot=slot)
            else:
                self._current, self._next = self._next, next(self._runs, None)
                self._merge()

    def at_end(self) -> bool:
        """Whether all runs were taken."""
        return self._current is None


def _adjacent(a: Run, b: Run) -> bool:
    if a.session != b.session:
        return False
    return a.session <= ZERO or (a.pack == b.pack and b.slot == a.slot + a.chunks)


def coalesce(runs: Iterable[Run]) -> Iterator[Run]:
    """The same runs, neighbours joined."""
    last: Run | None = None
    for run in runs:
        if last is not None and _adjacent(last, run):
            last = last._replace(chunks=last.chunks + run.chunks)
        else:
            if last is not None:
                yield last
            last = run
    if last is not None:
        yield last


def overlay(old: Iterable[Run], new: Iterable[Run]) -> Iterator[Run]:
    """`new`, with its KEEP runs filled from `old`. Both cover the same chunks."""
    cursor = _Cursor(old)
    for run in new:
        if run.session == KEEP:
            yield from cursor.take(run.chunks)
        else:
            for _ in cursor.take(run.chunks):
                pass
            yield run


class MapUpdater:
    """Makes the map of a disk from its old map and a stream of runs; only nodes that differ are written.

    `uses` counts, by session number, the nodes that name it; it is kept right as nodes come and go.
    """

    def __init__(self, chunk_size: int, load: Load, store: Store, uses: Counter[int]) -> None:
        self._chunk_size, self._load, self._store, self.uses = chunk_size, load, store, uses
        self._leaf_chunks = LEAF_SPAN // chunk_size

    def update(self, old: Ref | None, runs: Iterable[Run], chunks: int) -> Ref:
        """The new root. The runs add up to `chunks`, which is at least `old.chunks`. Raises ValueError otherwise."""
        cursor = _Cursor(runs)
        refs: list[Ref] = []
        level = start = 0
        if old is not None and old.chunks:
            level, start = old.level, old.chunks
            self._unname(old)
            refs = self._rebuild(old, 0, cursor)
        grown = self._group(list(self._leaves(start, chunks - start, cursor)), start, level)
        refs = join_zeros(refs + grown)
        while len(refs) > 1:
            level += 1
            refs = self._group(refs, 0, level)
        if not cursor.at_end():
            raise ValueError("the runs go on beyond the disk's end")
        root = refs[0] if refs else zero_ref(0, 0)
        if root.session != ZERO:
            self.uses[root.session] += 1
        return root

    def drop(self, root: Ref) -> None:
        """Takes a whole map out of `uses`."""
        self._unname(root)
        for _, _, node in nodes(root, self._load):
            self.uses.subtract(node.sessions)

    def _unname(self, root: Ref) -> None:
        if root.session != ZERO:
            self.uses[root.session] -= 1

    def _rebuild(self, ref: Ref, first: int, cursor: _Cursor) -> list[Ref]:
        """What stands in place of `ref`: references of the same level, `[ref]` where nothing differs."""
        if cursor.keeps(ref.chunks):
            for _ in cursor.take(ref.chunks):
                pass
            return [ref]
        if ref.session == ZERO:
            return self._group(list(self._leaves(first, ref.chunks, cursor, was_zero=True)), first, ref.level)
        node = self._load(ref, first)
        if node.level == 0:
            merged = list(coalesce(overlay(_runs(node), cursor.take(ref.chunks))))
            if tuple(merged) == node.entries:
                return [ref]
            self.uses.subtract(node.sessions)
            return list(self._split(first, merged))
        out: list[Ref] = []
        at = first
        for child in _refs(node):
            out += self._rebuild(child, at, cursor)
            at += child.chunks
        if tuple(out) == node.entries:
            return [ref]
        self.uses.subtract(node.sessions)
        return self._group(out, first, node.level)

    def _leaves(self, first: int, chunks: int, cursor: _Cursor, *, was_zero: bool = False) -> Iterator[Ref]:
        """New leaves, cut at multiples of LEAF_SPAN."""
        end = first + chunks
        while first < end:
            count = min(self._leaf_chunks - first % self._leaf_chunks, end - first)
            new = cursor.take(count)
            runs = coalesce(overlay([Run(count, ZERO, 0, 0)], new)) if was_zero else coalesce(new)
            yield from self._split(first, runs)
            first += count

    def _split(self, first: int, runs: Iterable[Run]) -> Iterator[Ref]:
        entries: list[Run] = []
        for run in runs:
            if run.session == KEEP:
                raise ValueError("nothing is there to keep")
            if len(entries) == LEAF_ENTRIES:
                yield self._leaf(first, entries)
                first += sum(e.chunks for e in entries)
                entries = []
            entries.append(run)
        yield self._leaf(first, entries)

    def _leaf(self, first: int, entries: list[Run]) -> Ref:
        if len(entries) == 1 and entries[0].session == ZERO:
            return zero_ref(0, entries[0].chunks)
        return self._write(Node.leaf(self._chunk_size, first, entries))

    def _write(self, node: Node) -> Ref:
        self.uses.update(node.sessions)
        return self._store(node)

    def _group(self, refs: list[Ref], first: int, level: int) -> list[Ref]:
        """References lifted to `level`, in nodes of at most INNER_ENTRIES."""
        while refs and refs[0].level < level:
            refs = join_zeros(refs)
            lifted, at = [], first
            for start in range(0, len(refs), INNER_ENTRIES):
                part = refs[start : start + INNER_ENTRIES]
                chunks = sum(r.chunks for r in part)
                if all(r.session == ZERO for r in part):
                    lifted.append(zero_ref(part[0].level + 1, chunks))
                else:
                    lifted.append(self._write(Node.inner(self._chunk_size, at, part)))
                at += chunks
            refs = lifted
        return refs


def _runs(node: Node) -> Iterator[Run]:
    return (entry for entry in node.entries if isinstance(entry, Run))


def _refs(node: Node) -> Iterator[Ref]:
    return (entry for entry in node.entries if isinstance(entry, Ref))


def join_zeros(refs: list[Ref]) -> list[Ref]:
    """The same references, neighbours that are all zeros joined."""
    out: list[Ref] = []
    for ref in refs:
        if out and ref.session == ZERO and out[-1].session == ZERO:
            out[-1] = zero_ref(ref.level, out[-1].chunks + ref.chunks)
        else:
            out.append(ref)
    return out
