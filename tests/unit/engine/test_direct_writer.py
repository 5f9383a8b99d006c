"""A writer whose thread writes while its caller goes on: no error is lost, no file is closed under it."""

from __future__ import annotations

import errno
import os
import random
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.engine.kit import RamKit
from vmbackup.engine.images import direct_file
from vmbackup.engine.images.direct_file import DirectFile, DirectWriter
from vmbackup.engine.restore.flat import RestoreOptions, restore
from vmbackup.errors import TargetError
from vmbackup.progress import Silent

MIB = 1 << 20


@pytest.fixture
def file(tmp_path: Path) -> Iterator[DirectFile]:
    made = DirectFile(tmp_path / "image", os.O_CREAT | os.O_EXCL)
    yield made
    made.close()


def test_pieces_of_any_length_at_any_place(file: DirectFile) -> None:
    writer, chance, wanted = DirectWriter(file), random.Random(1), bytearray(4 * MIB)
    for offset, lengths in [(0, [65536] * 16), (2 * MIB, [4096, 1, 8191]), (MIB + 7, [500, 0]), (3 * MIB, [MIB])]:
        pieces = [chance.randbytes(length) for length in lengths]
        wanted[offset : offset + sum(lengths)] = b"".join(pieces)
        writer.write(offset, pieces)
    writer.close()
    writer.abandon()
    writer.abandon()
    assert file.path.read_bytes() == wanted


@pytest.mark.parametrize("told", ["by the next write", "as it is closed"])
def test_what_could_not_be_written_is_told(file: DirectFile, told: str) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, limits[1]))
    writer = DirectWriter(file)
    try:
        writer.write(2 * MIB, [bytes(65536)])
        with pytest.raises(TargetError, match=r"cannot write .*image: File too large"):
            writer.write(0, [bytes(65536)]) if told == "by the next write" else writer.close()
    finally:
        writer.abandon()
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_it_is_given_up_once_nothing_is_under_way(file: DirectFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is closed next, and its number may become another file's."""
    begun, go_on, events = threading.Event(), threading.Event(), list[str]()

    def slow(*_: object) -> None:
        begun.set()
        go_on.wait(30)
        events.append("written")

    monkeypatch.setattr(direct_file, "_write_all", slow)
    writer = DirectWriter(file)
    writer.write(0, [bytes(65536)])
    assert begun.wait(30)
    threading.Timer(0.05, go_on.set).start()
    writer.abandon()
    assert events == ["written"]


def test_a_restore_whose_last_write_fails_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit = RamKit(tmp_path, {"vda": 128 * 1024}, 64 * 1024)
    kit.disk().write(0, random.Random(2).randbytes(128 * 1024))
    kit.backup()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(direct_file, "_write_all", full)
    with pytest.raises(TargetError, match="no space is left"):
        restore(kit.repository, kit.points()[0], RestoreOptions(tmp_path / "out", workers=1), Silent())
    assert not list((tmp_path / "out").glob("*.qcow2"))
