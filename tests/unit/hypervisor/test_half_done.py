"""What is marked as half restored stays so until it is whole, whatever happens in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmbackup.errors import HypervisorError
from vmbackup.hypervisor.tidy.half_done import HalfDoneStore

UUID = "6b5c2f0e-0000-4000-8000-000000000001"


def test_disks_are_marked_until_they_are_whole(tmp_path: Path) -> None:
    """Each by itself; the file goes with the last one."""
    store = HalfDoneStore(str(tmp_path))
    assert store.of(UUID).point_of("vda") is None
    store.mark(UUID, "web", ["vda", "vdb"], "point-1", "kept-1")
    store.mark(UUID, "web", ["vdb"], "point-2", "kept-1")
    again = HalfDoneStore(str(tmp_path)).of(UUID)
    assert (again.disks, again.kept) == ({"vda": "point-1", "vdb": "point-2"}, "kept-1")
    store.clear(UUID, ["vda"])
    assert store.of(UUID).disks == {"vdb": "point-2"}
    store.mark(UUID, "web", ["vda"], "point-1", "kept-1")
    store.clear(UUID, iter(["vdb", "vda"]))
    assert store.of(UUID).point_of("vdb") is None
    assert list((tmp_path / "in-place").iterdir()) == []
    store.clear(UUID)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"version": 2, "domain_name": "", "disks": {}, "kept": null}'])
def test_a_mark_that_cannot_be_read_counts_for_every_disk(tmp_path: Path, text: str) -> None:
    """Of a newer version too; only a restore of all, or a purge, takes it away."""
    store = HalfDoneStore(str(tmp_path))
    (tmp_path / "in-place").mkdir()
    (tmp_path / "in-place" / f"{UUID}.json").write_text(text)
    assert store.of(UUID).point_of("vdz") == "an unknown restore point"
    store.clear(UUID)
    assert store.of(UUID).point_of("vdz") is None


def test_no_mark_no_change(tmp_path: Path) -> None:
    """Where it cannot be written the restore does not begin."""
    (tmp_path / "in-place").write_text("a file")
    with pytest.raises(HypervisorError, match="cannot be written down"):
        HalfDoneStore(str(tmp_path)).mark(UUID, "web", ["vda"], "point-1", None)
