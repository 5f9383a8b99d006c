"""Space that is reserved ahead: given back where nothing was written, and harmless where it cannot be had."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmbackup.engine.images import reserved_space
from vmbackup.engine.images.reserved_space import GrowingFile, reserve

MIB = 1 << 20


def test_what_was_not_written_is_given_back(tmp_path: Path) -> None:
    """The file ends with the cluster that was written last."""
    path = tmp_path / "image"
    path.write_bytes(b"head" * 1024)
    file = GrowingFile(path, 65536)
    file.expect(MIB)
    assert path.stat().st_size >= 512 * MIB
    with open(path, "r+b") as image:
        image.seek(3 * MIB)
        image.write(b"x" * 5000)
    os.sync()
    file.trim()
    file.close()
    assert path.stat().st_size == 3 * MIB + 65536
    assert path.stat().st_blocks * 512 < 4 * MIB
    assert path.read_bytes()[3 * MIB : 3 * MIB + 5000] == b"x" * 5000


def test_a_file_system_that_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file then grows as it is written; it is asked once."""
    asked: list[int] = []

    def refused(_fd: int, offset: int, _length: int) -> bool:
        asked.append(offset)
        return False

    monkeypatch.setattr(reserved_space, "reserve", refused)
    path = tmp_path / "image"
    path.write_bytes(b"head")
    file = GrowingFile(path, 4096)
    file.expect(MIB)
    file.expect(1 << 40)
    file.close()
    assert asked == [4]
    assert path.read_bytes() == b"head"


def test_a_pipe_reserves_nothing() -> None:
    """What the system refuses is no error."""
    ends = os.pipe()
    assert not reserve(ends[1], 0, MIB)
    for end in ends:
        os.close(end)
