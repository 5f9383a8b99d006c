"""What the guest's file system could not give to its end has no final name, though it looks whole."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

from tests.unit.files.test_landing import archive, folder, member
from vmbackup.engine.files.files import GuestFiles
from vmbackup.engine.files.guest_process import GuestProcess, GuestRefusal
from vmbackup.errors import GuestFilesError
from vmbackup.progress import Silent

SIZE = 4


class Process:
    """In place of the confined process: a folder /etc, and a file /hosts in it. `refusal` comes behind the bytes."""

    refusal: GuestFilesError | None = None
    listed: Sequence[dict[str, Any]] | None = ()

    def ask(self, do: str, path: str = "", **_: Any) -> Any:
        if do == "filesystems":
            return []
        return told("", 0o040755 if path == "/etc" else 0o100644)

    def entries(self, path: str) -> Sequence[dict[str, Any]]:
        if self.listed is None or path != "/etc":
            raise GuestRefusal("ls: file receive cancelled by daemon", 0)
        return self.listed

    @contextmanager
    def data(self, do: str, path: str) -> Iterator[BinaryIO]:
        """As tar does it: it goes on with zeros in place of what cannot be read, and tells so at its end."""
        yield archive(folder("."), member("./hosts", bytes(SIZE))) if do == "tar" else io.BytesIO(bytes(SIZE))
        if self.refusal is not None and not path.endswith("good"):
            raise self.refusal


def told(name: str, mode: int, target: str = "") -> dict[str, Any]:
    return {"name": name, "mode": mode, "uid": 0, "gid": 0, "size": SIZE, "mtime": 0, "target": target}


class Tree:
    """In place of the guest's tree: each path is where it says."""

    def enter(self, path: str) -> str:
        return path


def damaged() -> tuple[GuestFiles, Process]:
    process = Process()
    process.refusal = GuestRefusal("tar: ./hosts: Read error at byte 0", 5)
    process.listed = None
    files = GuestFiles(cast("GuestProcess", process), ["vda"], 1.0)
    files.tree = cast("Any", Tree())
    return files, process


@pytest.mark.parametrize("path", ["/etc", "/etc/hosts"])
def test_what_fails_at_its_end_is_not_there(tmp_path: Path, path: str) -> None:
    files, process = damaged()
    with pytest.raises(GuestRefusal):
        files.fetch([path], tmp_path, Silent())
    assert os.listdir(tmp_path) == []
    process.refusal = process.listed = None
    assert files.fetch([path], tmp_path, Silent()).files == 1
    assert os.listdir(tmp_path) == [path.rpartition("/")[2]]


def test_of_a_damaged_folder_comes_what_can_be_read(tmp_path: Path) -> None:
    """File by file: what cannot is told, each by its name, and none of it is there as zeros."""
    files, process = damaged()
    kinds = {"good": 0o100640, "hosts": 0o100644, "down": 0o040755, "gone": 0, "pipe": 0o010644}
    process.listed = [*(told(name, mode) for name, mode in kinds.items()), told("near", 0o120777, "good")]
    done = files.fetch(["/etc"], tmp_path, Silent())
    assert {each.path: each.reason for each in done.left_out} == {
        "down": "what is in it cannot be read",
        "gone": "it cannot be read",
        "hosts": "it cannot be read",
        "pipe": "a device or pipe",
    }
    assert (done.files, done.links, done.bytes) == (1, 1, SIZE)   # nothing of what the archive brought
    assert sorted(os.listdir(tmp_path / "etc")) == ["down", "good", "near"]
    assert os.listdir(tmp_path) == ["etc"]
    assert oct((tmp_path / "etc" / "good").stat().st_mode) == "0o100640"


def test_a_process_that_ends_is_no_damage(tmp_path: Path) -> None:
    files, process = damaged()
    process.listed = [told("good", 0o100644), told("hosts", 0o100644)]
    process.refusal = GuestFilesError("it ended: killed")
    with pytest.raises(GuestFilesError, match="killed"):
        files.fetch(["/etc"], tmp_path, Silent())
    assert os.listdir(tmp_path) == []
