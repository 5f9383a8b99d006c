"""Verify and prune tell how far they are: each task that begins ends, and a known total is reached."""

from __future__ import annotations

from pathlib import Path

from tests.unit.engine.test_repack import history
from vmbackup.engine.care.verify import verify
from vmbackup.repository.collect import PruneOptions, prune


class Counted:
    """What was told: total and done of each task that has ended."""

    def __init__(self) -> None:
        self.running: dict[str, list[int | None]] = {}
        self.ended: dict[str, tuple[int | None, int]] = {}
        self.notes: list[str] = []

    def start(self, task: str, total_bytes: int | None) -> None:
        assert task not in self.running
        self.running[task] = [total_bytes, 0]

    def advance(self, task: str, n_bytes: int) -> None:
        assert n_bytes >= 0
        self.running[task][1] += n_bytes  # type: ignore[operator]

    def finish(self, task: str) -> None:
        total, done = self.running.pop(task)
        assert done is not None
        self.ended[task] = (total, done)

    def note(self, text: str) -> None:
        self.notes.append(text)


def _reached(told: Counted, task: str) -> int:
    total, done = told.ended[task]
    assert total == done
    return done


def test_verify_and_prune(tmp_path: Path) -> None:
    kit, told = history(tmp_path, 12, lambda number: number % 3 == 0), Counted()
    points = kit.points()
    found = verify(kit.repository, None, 1.0, told)
    assert _reached(told, "reading maps") == sum(disk.virtual_size for point in points for disk in point.disks)
    assert 0 < told.ended["checking indexes"][1] < found.bytes
    assert 0 < _reached(told, "reading packs") < found.bytes
    told.ended.clear()
    report = prune(kit.repository, PruneOptions(repack_below=1.0), progress=told, sleep=lambda _s: None)
    assert _reached(told, "repacking") >= report.repacked.copied_bytes > 0
    assert _reached(told, "deleting") > 0
    assert (told.running, told.notes) == ({}, [])
