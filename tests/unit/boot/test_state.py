"""What a host keeps of its booted guests."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vmbackup.engine.boot.records import Booted, BootedDisk, BootStore, check_name, check_socket, held, holder
from vmbackup.errors import JobConflictError, NotFoundError, TargetError, UsageError
from vmbackup.hypervisor.started.aside import set_aside

BOOTED = Booted(
    name="web-rescue",
    uuid="6d0b7b2e-3d8c-4b59-8d4c-0f7c2f3f2c11",
    point="20261124T020000Z-1a2b3c4d",
    origin="web",
    created="2026-11-24T03:00:00+00:00",
    folder="/var/lib/libvirt/vmbackup/boot/web-rescue",
    owner=(64055, 64055),
    serve=("serve", "20261124T020000Z-1a2b3c4d"),
    disks=(BootedDisk("vda", 1 << 30, {"cluster_size": "65536"}), BootedDisk("vdb", 1 << 20)),
    policies={"vda": {"error_policy": "report"}},
)


def test_a_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    store = BootStore(tmp_path)
    assert store.all() == []
    store.put(BOOTED)
    later = replace(BOOTED, phase="finishing", output="/srv", woken=True)
    store.put(later)
    assert store.all() == [later]
    assert store.require("web-rescue") == later
    assert later.image("vdb") == "/srv/vdb.qcow2"


def test_a_guest_that_hangs_on_a_repository_is_set_aside(tmp_path: Path) -> None:
    """From before it is defined until it stands alone; a state that cannot be read sets nobody aside."""
    store = BootStore(tmp_path)
    assert set_aside(str(tmp_path)) == frozenset()
    store.put(BOOTED)
    (store.folder / "broken.json").write_text("{")
    assert set_aside(str(tmp_path)) == {BOOTED.uuid}
    store.remove(BOOTED.name)
    assert set_aside(str(tmp_path)) == frozenset()


def test_nothing_is_left_of_one_that_is_removed(tmp_path: Path) -> None:
    store = BootStore(tmp_path)
    store.put(BOOTED)
    with store.at_work(BOOTED.name):
        store.path(BOOTED.name, "log").write_text("said")
        store.path(BOOTED.name, "server").write_text("{}")
        store.remove(BOOTED.name)
    assert list(store.folder.iterdir()) == []


def test_one_that_is_not_there_is_said_with_those_that_are(tmp_path: Path) -> None:
    store = BootStore(tmp_path)
    with pytest.raises(NotFoundError, match="no guest other hangs") as nothing:
        store.require("other")
    assert "none does" in nothing.value.hint
    store.put(BOOTED)
    with pytest.raises(NotFoundError) as near:
        store.require("../other")
    assert near.value.hint == "those that do: web-rescue"


def test_a_damaged_state_is_said(tmp_path: Path) -> None:
    store = BootStore(tmp_path)
    store.put(BOOTED)
    store.path(BOOTED.name, "json").write_text('{"version": 7}')
    with pytest.raises(TargetError, match="cannot be read"):
        store.all()


HOLD = """
import sys
from pathlib import Path
from vmbackup.engine.boot.records import held
with held(Path(sys.argv[1])) as got:
    print(got, flush=True)
    sys.stdin.read()
"""


def test_one_command_at_a_time_works_on_a_guest(tmp_path: Path) -> None:
    store = BootStore(tmp_path)
    path = store.path("web", "work")
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"True\n"
        assert holder(path) == other.pid
        with pytest.raises(JobConflictError, match="works on web"), store.at_work("web"):
            pass
    assert holder(path) is None
    with store.at_work("web"):
        pass


def test_the_lock_of_a_guest_that_is_gone_is_nobodys(tmp_path: Path) -> None:
    """Who opened the lock file before it was removed must not believe that he holds the lock of the next guest."""
    path = tmp_path / "web.work"
    with held(path) as first:
        assert first
        path.unlink()
        with held(path) as second:
            assert second


@pytest.mark.parametrize("name", ["", ".web", "-web", "a/b", "a b", "x" * 51, "wéb"])
def test_a_name_that_cannot_be_one_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no name for a booted guest"):
        check_name(name)


def test_a_socket_with_too_long_a_path_is_refused_before_anything_is_made() -> None:
    check_socket(BOOTED)
    with pytest.raises(UsageError, match="longer name"):
        check_socket(replace(BOOTED, folder="/x" * 60))
