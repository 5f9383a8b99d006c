"""Where a drill works: one at a time for a guest, and what a killed one left goes, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vmbackup.engine.drill import bench as drill_bench
from vmbackup.engine.drill.bench import Bench, drilled, left_over
from vmbackup.errors import HypervisorError, JobConflictError

UUID = "f707ff3b-b71b-4e4e-8f78-acacb883c7e3"


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The domains that were ended."""
    names: list[str] = []
    monkeypatch.setattr(drill_bench, "end", lambda _connection, name: names.append(name))
    return names


@pytest.fixture
def host(tmp_path: Path, ended: list[str]) -> Any:
    folders = tmp_path / "libvirt/qemu"
    folders.mkdir(parents=True)
    places = SimpleNamespace(
        scratch_dir=str(tmp_path / "scratch"), state_dir=str(tmp_path / "state"), domain_folders=str(folders)
    )
    return SimpleNamespace(connection=None, places=places)


def everything(tmp_path: Path) -> list[str]:
    found = [path for name in ("scratch", "state/drills", "libvirt/swtpm") for path in (tmp_path / name).rglob("*")]
    return sorted(str(path.relative_to(tmp_path)) for path in found)


def test_nothing_is_left_of_one_that_ends(host: Any, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Bench.taken(host, "local/web", "web1") as bench:
        bench.path("0.qcow2").write_bytes(b"overlay")
        bench.write_down(UUID)
        (tmp_path / f"libvirt/swtpm/{UUID}/tpm2").mkdir(parents=True)
        assert Path(bench.place.folder).stat().st_mode & 0o777 == 0o711
        raise ZeroDivisionError
    assert everything(tmp_path) == []


def test_one_at_a_time_for_a_guest(host: Any) -> None:
    with Bench.taken(host, "local/web", "web1"):
        second = Bench.taken(host, "local/web", "web1")
        with pytest.raises(JobConflictError, match="another drill of web1 goes on"), second:
            pass
        with Bench.taken(host, "local/db", "db"):
            pass
        assert list(left_over(host)) == []
    with Bench.taken(host, "local/web", "web1"):
        pass


def killed(host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """As after kill -9; the domain's name."""
    with monkeypatch.context() as patch:
        patch.setattr(Bench, "clear", lambda _self: None)
        with Bench.taken(host, "local/web", "web1") as bench:
            bench.write_down(UUID)
            bench.path("0.qcow2").write_bytes(b"overlay")
            (tmp_path / f"libvirt/swtpm/{UUID}").mkdir(parents=True)
            (tmp_path / "libvirt/swtpm/other").mkdir()
    return bench.place.name


def test_what_a_killed_one_left_goes(
    host: Any, tmp_path: Path, ended: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the next look, or the next drill of that guest; the guest before its files."""
    name = killed(host, tmp_path, monkeypatch)
    ended.clear()
    assert list(left_over(host)) == [("web1", "removed the throw-away guest and files of a drill that was killed")]
    assert ended == [name]
    assert everything(tmp_path) == ["libvirt/swtpm/other"]
    (tmp_path / "libvirt/swtpm/other").rmdir()
    killed(host, tmp_path, monkeypatch)
    with Bench.taken(host, "local/web", "web1") as bench:
        assert not bench.path("0.qcow2").exists()
    assert everything(tmp_path) == ["libvirt/swtpm/other"]


def test_those_of_one_guest(host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name or its UUID; what others left, and what nobody knows whose it is, stays."""
    with monkeypatch.context() as patch:
        patch.setattr(Bench, "clear", lambda _self: None)
        for number, name in enumerate(("web1", "web1", "db")):
            with Bench.taken(host, f"{number}/{name}", name, f"uuid of {name}"):
                pass
    (tmp_path / "state/drills/vmbackup-drill-000000000000.json").write_text("{cut")
    assert drilled(host) == {"web1", "uuid of web1", "db", "uuid of db"}
    assert list(left_over(host, {"other"})) == []
    assert [guest for guest, _ in left_over(host, {"web1"})] == ["web1", "web1"]
    assert drilled(host) == {"db", "uuid of db"}
    assert [guest for guest, _ in left_over(host, {"uuid of db"})] == ["db"]
    assert everything(tmp_path) == ["state/drills/vmbackup-drill-000000000000.json"]


def test_one_that_cannot_be_ended_keeps_no_other_alive(
    host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Bench, "clear", lambda _self: None)
        places = {}
        for name in ("web1", "db", "app"):
            with Bench.taken(host, f"local/{name}", name) as bench:
                places[bench.place.name] = name

    def end(_connection: object, name: str) -> None:
        if places[name] == "db":
            raise HypervisorError("libvirt does not answer")

    monkeypatch.setattr(drill_bench, "end", end)
    with pytest.raises(HypervisorError, match="libvirt does not answer"):
        list(left_over(host))
    assert drilled(host) == {"db"}


def test_a_guest_that_cannot_be_ended_keeps_its_files(
    host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It uses them; the next try does it."""

    def fail(*_: object) -> None:
        raise HypervisorError("libvirt does not answer")

    killed(host, tmp_path, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(drill_bench, "end", fail)
        with pytest.raises(HypervisorError):
            list(left_over(host))
    assert any("0.qcow2" in name for name in everything(tmp_path))
    assert len(list(left_over(host))) == 1


@pytest.mark.parametrize("text", ["", "{cut", "[]", '{"name": 7}', '{"name": "x", "guest": "x", "folder": 7}'])
def test_what_was_not_written_to_the_end(host: Any, tmp_path: Path, ended: list[str], text: str) -> None:
    (tmp_path / "state/drills").mkdir(parents=True)
    (tmp_path / "state/drills/vmbackup-drill-000000000000.json").write_text(text)
    assert (list(left_over(host)), ended, everything(tmp_path)) == ([], [], [])


def test_another_folder_than_its_own_is_not_removed(host: Any, tmp_path: Path) -> None:
    (tmp_path / "state/drills").mkdir(parents=True)
    (tmp_path / "precious").mkdir()
    folder = str(tmp_path / "precious")
    place = {"name": "vmbackup-drill-000000000000", "guest": "web1", "folder": folder, "uuid": "../.."}
    (tmp_path / "state/drills/vmbackup-drill-000000000000.json").write_text(json.dumps(place))
    assert len(list(left_over(host))) == 1
    assert (tmp_path / "precious").is_dir()
