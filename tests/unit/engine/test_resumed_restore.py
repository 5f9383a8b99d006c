"""A restore that was interrupted: the same one goes on, another one begins anew, nothing half-written gets a name."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.engine.kit import RamKit
from vmbackup.engine.images import raw_target
from vmbackup.engine.restore.flat import RestoreOptions, restore
from vmbackup.errors import TargetError
from vmbackup.progress import Silent

MIB = 1 << 20
SIZE = 24 * MIB


class Notes(Silent):
    """Keeps what the operator is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        """Kept."""
        self.texts.append(text)


@pytest.fixture
def kit(tmp_path: Path) -> RamKit:
    made = RamKit(tmp_path, {"vda": SIZE})
    made.disk().write(0, random.Random(1).randbytes(SIZE - 3 * MIB))
    made.backup()
    return made


@pytest.fixture
def options(tmp_path: Path) -> RestoreOptions:
    return RestoreOptions(tmp_path / "out", "raw", workers=2, sync_seconds=0)


def fail_after(monkeypatch: pytest.MonkeyPatch, writes: int, error: BaseException) -> None:
    """The target's writes fail from that one on."""
    left = iter(range(writes))
    write = raw_target._RawWriter.write

    def failing(self: Any, offset: int, pieces: Any) -> None:
        if next(left, None) is None:
            raise error
        write(self, offset, pieces)

    monkeypatch.setattr(raw_target._RawWriter, "write", failing)


def run(kit: RamKit, options: RestoreOptions, notes: Notes | None = None) -> int:
    done = restore(kit.repository, kit.points()[0], options, notes or Silent())
    assert (options.output or Path(), done.files[0].path.read_bytes()) == (options.output, bytes(kit.disk().data))
    return done.files[0].fetched_bytes


def test_the_same_command_goes_on(kit: RamKit, options: RestoreOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads back what is there, fetches the rest, and leaves nothing beside the image."""
    folder, notes = options.output or Path(), Notes()
    with monkeypatch.context() as patch:
        fail_after(patch, 12, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            run(kit, options, notes)
    assert sorted(os.listdir(folder)) == ["vda.raw.partial", "vda.raw.partial.json"]
    assert notes.texts == [f"{folder}/vda.raw.partial stays: the same command goes on with it; to give up, delete it"]
    notes = Notes()
    assert 0 < run(kit, options, notes) <= SIZE - 3 * MIB - 8 * MIB
    assert notes.texts == [f"going on with {folder}/vda.raw.partial: what is right there is not read again"]
    assert sorted(os.listdir(folder)) == ["domain.xml", "vda.raw"]


def test_what_was_changed_meanwhile_is_put_right(
    kit: RamKit, options: RestoreOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that lies there is trusted: it is compared."""
    with monkeypatch.context() as patch:
        fail_after(patch, 12, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            run(kit, options)
    with open(f"{options.output}/vda.raw.partial", "r+b") as file:
        file.write(b"spoilt")
    run(kit, options)


def test_another_restore_begins_anew(kit: RamKit, options: RestoreOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was to become another image is of no use. (Another restore point: test_output_folder.py.)"""
    with monkeypatch.context() as patch:
        fail_after(patch, 12, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            run(kit, options)
    notes = Notes()
    assert run(kit, replace(options, preallocation="full"), notes) == SIZE - 3 * MIB
    assert notes.texts == []


def test_a_short_one_leaves_nothing(kit: RamKit, options: RestoreOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """What took less than the time of a sync is made anew sooner than explained."""
    fail_after(monkeypatch, 12, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(kit, replace(options, sync_seconds=60))
    assert os.listdir(options.output or Path()) == []


def test_two_at_once_are_refused(kit: RamKit, options: RestoreOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second says that the first is at work, and disturbs nothing."""
    write, tried = raw_target._RawWriter.write, []

    def second(self: Any, offset: int, pieces: Any) -> None:
        if not tried:
            tried.append(True)
            with pytest.raises(TargetError, match="in use: another restore writes it"):
                restore(kit.repository, kit.points()[0], options, Silent())
        write(self, offset, pieces)

    monkeypatch.setattr(raw_target._RawWriter, "write", second)
    run(kit, options)
    assert tried


def test_killed_as_it_gives_the_names(kit: RamKit, options: RestoreOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between the names of two files: the same command gives the second one its name."""
    link, names = os.link, []

    def killed(source: Any, path: Any) -> None:
        if names:
            raise KeyboardInterrupt
        link(source, path)
        names.append(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", killed)
        patch.setattr(Path, "unlink", lambda *_args, **_kwargs: None)  # a kill removes nothing
        with pytest.raises(KeyboardInterrupt):
            restore(kit.repository, kit.points()[0], options, Silent())
    assert sorted(os.listdir(options.output or Path())) == [
        "domain.xml.partial", "vda.raw", "vda.raw.partial", "vda.raw.partial.json",
    ]  # fmt: skip
    assert run(kit, options) == 0
    assert sorted(os.listdir(options.output or Path())) == ["domain.xml", "vda.raw"]
