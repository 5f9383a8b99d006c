"""`info`: a repository at a glance, out of a real one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.ram import RamDisk, RamGuest, RamHost
from vmbackup.engine.backup.run import BackupOptions, backup
from vmbackup.progress import Silent
from vmbackup.repository import PointSummary, Repository
from vmbackup.repository.keys import Secret
from vmbackup.repository.trust import Trust
from vmbackup.storage_backends import open_store

from .conftest import Run

UUIDS = {"web1": "f707ff3b-b71b-4e4e-8f78-acacb883c7e3", "db": "00000000-0000-0000-0000-000000000001"}


@pytest.fixture
def make_point(repository: Path, tmp_path: Path) -> Callable[[str], PointSummary]:
    """A restore point of a guest in memory, in the repository that `init` made."""
    secret = Secret.passphrase((tmp_path / "secrets/passphrase").read_text().strip())
    opened = Repository.open(open_store(str(repository)), secret, Trust(None))
    guests = {name: RamGuest(name, {"vda": RamDisk(bytearray(65536))}, uuid) for name, uuid in UUIDS.items()}

    def make(name: str) -> PointSummary:
        host: Any = RamHost(guests[name])
        guests[name].disks["vda"].write(0, name.encode())
        return backup(host, opened, name, BackupOptions(workers=2), Silent())

    return make


def test_a_new_repository(run: Run, repository: Path) -> None:
    document = run("--json", "info").json
    identity = document["repository"].pop("id")
    assert len(identity) == 8
    assert document == {
        "repository": {
            "name": "local", "url": f"file://{repository}",
            "points": 0, "guests": 0, "damaged_objects": 0, "quarantined": 0,
        },
        "sizes": None,
        "verified": None,
        "guests": [],
    }  # fmt: skip
    result = run("info")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [
        f"repository  local ({identity})",
        f"place       file://{repository}",
        "holds       0 restore points of 0 guests",
        "verified    never on this host",
    ]


def test_guests_and_their_points(run: Run, make_point: Callable[[str], PointSummary]) -> None:
    """Guests by name, points newest first, as `list` tells them."""
    made = [make_point(name) for name in ("web1", "db", "web1")]
    document = run("--json", "info").json
    assert [guest["domain"] for guest in document["guests"]] == ["db", "web1"]
    web1 = document["guests"][1]
    assert web1["domain_uuid"] == UUIDS["web1"]
    assert [point["id"] for point in web1["points"]] == [made[2].id, made[0].id]
    listed = {point["id"]: point for point in run("--json", "list").json["points"]}
    for guest in document["guests"]:
        assert guest["host"] == listed[guest["points"][0]["id"]]["host"]
        for point in guest["points"]:
            assert point.pop("damaged") is False
            assert point.items() <= listed[point["id"]].items()
            assert set(point) == {
                "id", "time", "status", "consistency", "freeze_seconds", "quiesce_note", "copied_from",
            }  # fmt: skip
    assert {guest["domain"]: guest["drill"] for guest in document["guests"]} == {
        "db": {"last": None, "last_success": None}, "web1": {"last": None, "last_success": None},
    }  # fmt: skip
    lines = run("info").out.splitlines()
    assert lines[2] == "holds       3 restore points of 2 guests"
    assert [line.split()[:2] for line in lines[-2:]] == [["db", "1"], ["web1", "2"]]


def test_sizes_are_what_lies_there(run: Run, make_point: Callable[[str], PointSummary], repository: Path) -> None:
    make_point("web1")
    files = [path for path in repository.rglob("*") if path.is_file()]
    sizes = run("--json", "info", "--sizes").json["sizes"]
    assert sizes == {"bytes": sum(path.stat().st_size for path in files), "objects": len(files)}
    assert f"in {len(files)} objects" in run("info", "--sizes").out


def test_what_was_verified_and_found(run: Run, make_point: Callable[[str], PointSummary], repository: Path) -> None:
    """Of this host's last verify; a repository that holds damage is exit code 4."""
    make_point("web1")
    assert run("verify").code == 0
    verified = run("--json", "info").json["verified"]
    assert verified["domains"] == {"web1": verified["time"]}
    assert datetime.fromisoformat(verified["time"]).tzinfo
    (pack,) = repository.glob("data/default/*/*")
    pack.unlink()
    assert run("info").code == 0  # it looks at no packs
    assert run("verify").code == 4
    result = run("info")
    assert result.code == 4
    assert result.err == "warning: 1 object known to be damaged: 'vmbackup verify' names who suffers\n"
    assert run("--json", "info").json["repository"]["damaged_objects"] == 1


def test_what_another_host_found(
    run: Run, make_point: Callable[[str], PointSummary], repository: Path, tmp_path: Path
) -> None:
    """This host has never verified: the repository's own records tell."""
    make_point("web1")
    (pack,) = repository.glob("data/default/*/*")
    pack.unlink()
    run("verify")
    for kept in (tmp_path / "state/verified").iterdir():
        kept.unlink()
    about = run("--json", "info").json
    assert (about["repository"]["damaged_objects"], about["verified"]) == (1, None)


def test_a_point_that_cannot_be_read(run: Run, make_point: Callable[[str], PointSummary], repository: Path) -> None:
    make_point("web1")
    make_point("db")
    point = next(repository.glob("points/default/*/*"))
    point.chmod(0o600)
    point.write_bytes(b"rotten")
    document = run("--json", "info").json
    assert document["repository"]["points"] == 1
    assert document["repository"]["damaged_objects"] == 1
