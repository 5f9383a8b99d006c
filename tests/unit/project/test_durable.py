"""Files that are whole or as they were."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from vmbackup import durable
from vmbackup.durable import replace_file


def test_a_file_is_made_and_replaced(tmp_path: Path) -> None:
    """With its mode from the first instant on, whatever the umask; nothing else lies beside it."""
    path = tmp_path / "state.json"
    before = os.umask(0o777)
    try:
        replace_file(path, b"one", mode=0o640)
    finally:
        os.umask(before)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"one", 0o640)
    replace_file(path, b"two", durable=False)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"two", 0o600)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("at", ["fsync", "fchmod"])
def test_after_an_error_it_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    path = tmp_path / "state.json"
    replace_file(path, b"one")

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, at, fails)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"two")
    monkeypatch.undo()
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


def test_data_and_name_are_on_disk_before_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data before the name, the name before the return."""
    synced: list[tuple[bool, list[str]]] = []
    fsync = os.fsync

    def spy(handle: int) -> None:
        synced.append((stat.S_ISDIR(os.fstat(handle).st_mode), sorted(p.name for p in tmp_path.iterdir())))
        fsync(handle)

    monkeypatch.setattr(durable.os, "fsync", spy)
    replace_file(tmp_path / "state.json", b"one")
    assert [folder for folder, _ in synced] == [False, True]
    assert "state.json" not in synced[0][1]
    assert synced[1][1] == ["state.json"]
