"""The folder of one run: what may be seen there, and what a killed run leaves."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from vmbackup.engine.files.guest_process import RunFolder


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_what_is_left_behind_is_removed(tmp_path: Path) -> None:
    """But nothing that is in use, too young to be locked, or called otherwise."""
    old, young, other = (tmp_path / name for name in ("vmbackup-files-old", "vmbackup-files-young", "other"))
    for path in (old, young, other):
        (path / "work").mkdir(parents=True)
    used = RunFolder()
    for path in (old, other, used.path):
        os.utime(path, (1, 1))
    run = RunFolder()
    assert [path.exists() for path in (old, young, other, used.path)] == [False, True, True, True]
    for folder in (run, used):
        folder.remove()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "vmbackup-files-young"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_the_process_changes_nothing_beside_its_own(tmp_path: Path) -> None:
    run = RunFolder()
    run.socket.touch()
    run.open_socket()
    modes = {p.name: (stat.S_IMODE(p.stat().st_mode), p.stat().st_uid) for p in (run.path, run.work, run.socket)}
    assert modes == {run.path.name: (0o710, 0), "work": (0o700, 65534), "disks": (0o660, 0)}
    run.remove()
