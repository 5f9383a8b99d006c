"""What the guest's file system could not give to its end has no final name, though it looks whole."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

from tests.unit.files.test_landing import archive, folder, member
from vmbackup.engine.files.files import GuestFiles
from vmbackup.engine.files.guest_process import GuestProcess, GuestRefusal
from vmbackup.progress import Silent

SIZE = 4


class Process:
    """In place of the confined process: a folder /etc, and a file /hosts in it. `refusal` comes behind the bytes."""

    refusal: GuestRefusal | None = None

    def ask(self, do: str, path: str = "", **_: Any) -> Any:
        if do == "filesystems":
            return []
        kind = 0o040755 if path == "/etc" else 0o100644
        return {"mode": kind, "uid": 0, "gid": 0, "size": SIZE, "mtime": 0, "target": ""}

    @contextmanager
    def data(self, do: str, _path: str) -> Iterator[BinaryIO]:
        """As tar does it: it goes on with zeros in place of what cannot be read, and tells so at its end."""
        yield archive(folder("."), member("./hosts", bytes(SIZE))) if do == "tar" else io.BytesIO(bytes(SIZE))
        if self.refusal is not None:
            raise self.refusal


class Tree:
    """In place of the guest's tree: each path is where it says."""

    def enter(self, path: str) -> str:
        return path


@pytest.mark.parametrize("path", ["/etc", "/etc/hosts"])
def test_what_fails_at_its_end_is_not_there(tmp_path: Path, path: str) -> None:
    process = Process()
    process.refusal = GuestRefusal("tar: ./hosts: Read error at byte 0", 5)
    files = GuestFiles(cast("GuestProcess", process), ["vda"], 1.0)
    files.tree = cast("Any", Tree())
    with pytest.raises(GuestRefusal):
        files.fetch([path], tmp_path, Silent())
    assert os.listdir(tmp_path) == []
    process.refusal = None
    assert files.fetch([path], tmp_path, Silent()).files == 1
    assert os.listdir(tmp_path) == [path.rpartition("/")[2]]
