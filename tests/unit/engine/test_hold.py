"""A hold: a point that is served may be forgotten, and no prune takes anything of it."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.unit.engine.kit import RamKit
from vmbackup.engine.backup.hold import Hold
from vmbackup.engine.backup.saved_point import open_point, save_point
from vmbackup.errors import DamageError, NotFoundError
from vmbackup.progress import SILENT, Silent
from vmbackup.repository.collect import prune
from vmbackup.repository.points import Point
from vmbackup.repository.processes import process_mark
from vmbackup.repository.pruned import PruneOptions, PruneReport
from vmbackup.repository.tombstones import forget
from vmbackup.storage_backends import StoreError

HOST = "this-host"
SECONDS = 30.0


class Noting(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def kit(tmp_path: Path) -> RamKit:
    """A first point whose data no other one needs, and a second."""
    kit = RamKit(tmp_path, {"vda": 1 << 20})
    kit.disk().write(0, b"first" * 10000)
    kit.backup()
    kit.disk().write(0, b"other" * 10000)
    kit.backup()
    return kit


def pruned(kit: RamKit) -> PruneReport:
    return prune(kit.repository, PruneOptions(wait=0.0, repack_below=0.0, host=HOST), sleep=lambda _s: None)


def first(kit: RamKit) -> Point:
    return min(kit.points(), key=lambda point: point.session)


def pins(kit: RamKit) -> list[str]:
    return [entry.key for entry in kit.store.list("sessions/")]


def test_what_is_held_stays_when_it_is_forgotten(kit: RamKit) -> None:
    """It can be read to the end, and goes with the first prune after."""
    point = first(kit)
    with Hold(kit.repository, point.lineage.group, HOST, SILENT):
        forget(kit.repository, point.lineage, point.session)
        assert pruned(kit).waited_for
        assert kit.restored(point) == kit.kept[point.id]
    assert pins(kit) == []
    assert pruned(kit).objects > 0


def test_what_is_held_can_be_opened_again_after_it_was_forgotten(kit: RamKit, tmp_path: Path) -> None:
    """By the object that was kept here, whose signature is checked: the server of a booted guest starts again."""
    point, saved = first(kit), tmp_path / "saved"
    with Hold(kit.repository, point.lineage.group, HOST, SILENT):
        save_point(kit.repository, point, saved)
        forget(kit.repository, point.lineage, point.session)
        pruned(kit)
        kit.reopen()
        with pytest.raises(NotFoundError):
            open_point(kit.repository, kit.repository.survey(), point.key, tmp_path / "nothing")
        again = open_point(kit.repository, kit.repository.survey(), point.key, saved)
        assert kit.restored(again) == kit.kept[point.id]
    data = bytearray(saved.read_bytes())
    data[-100] ^= 1
    saved.write_bytes(data)
    with pytest.raises(DamageError):
        open_point(kit.repository, kit.repository.survey(), point.key, saved)


def test_a_backup_of_the_same_guest_goes_on_beside_it(kit: RamKit) -> None:
    point = first(kit)
    with Hold(kit.repository, point.lineage.group, HOST, SILENT):
        kit.disk().write(4096, b"third" * 100)
        kit.backup()
        kit.check_all()


def test_a_hold_dies_with_its_process(kit: RamKit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next prune on its host takes what it held; on another one it waits."""
    point = first(kit)
    with subprocess.Popen(["sleep", "60"]) as other:
        monkeypatch.setattr("vmbackup.engine.backup.hold.process_mark", lambda: process_mark(other.pid))
        Hold(kit.repository, point.lineage.group, HOST, SILENT).__enter__()
        forget(kit.repository, point.lineage, point.session)
        assert pruned(kit).waited_for
        other.kill()
    elsewhere = PruneOptions(wait=0.0, repack_below=0.0, host="another")
    assert prune(kit.repository, elsewhere, sleep=lambda _s: None).waited_for
    report = pruned(kit)
    assert not report.waited_for
    assert report.objects > 0


def test_it_is_renewed(kit: RamKit) -> None:
    """For a session that is open for a week is taken for dead; at no instant there is none."""
    with Hold(kit.repository, "default", HOST, SILENT, every=0.05):
        seen = set(pins(kit))
        deadline = time.monotonic() + SECONDS
        while len(seen) < 3:
            assert time.monotonic() < deadline
            now = pins(kit) or pins(kit)  # a listing is no instant: it may miss the new one, and the old one goes
            assert now
            seen.update(now)
    assert pins(kit) == []


def test_a_store_that_takes_no_pin_is_said(kit: RamKit, monkeypatch: pytest.MonkeyPatch) -> None:
    """A point of a copy that may only be read is served all the same."""

    def refuse(*_: object) -> None:
        raise StoreError("read-only")

    noting = Noting()
    monkeypatch.setattr(kit.store, "put", refuse)
    with Hold(kit.repository, "default", HOST, noting):
        assert len(noting.notes) == 1
    assert "a prune may take what is served" in noting.notes[0]
