"""Every golden repository is read by this version, by passphrase and by recovery key."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.unit.engine.kit import sha
from vmbackup.engine.backup.run import BackupOptions, backup
from vmbackup.engine.care.verify import verify
from vmbackup.engine.restore.flat import RestoreOptions, restore
from vmbackup.progress import Silent
from vmbackup.repository import Repository
from vmbackup.repository.keys import Secret
from vmbackup.repository.trust import Trust
from vmbackup.storage_backends import open_store

GOLDEN = Path(__file__).parents[2] / "golden"
NAMES = sorted(p.parent.name for p in GOLDEN.glob("*/expected.json"))


def test_there_are_golden_repositories() -> None:
    assert {"v1-4k", "v1-64k", "v1-moved", "v1-replica", "v1-files", "v1-files-replica"} <= set(NAMES)


@pytest.mark.parametrize("secret", ["passphrase", "recovery_key"])
@pytest.mark.parametrize("name", NAMES)
def test_golden_repository(tmp_path: Path, name: str, secret: str) -> None:
    """All points restore to the recorded bytes; nothing is damaged."""
    expected = json.loads((GOLDEN / name / "expected.json").read_text())
    store = open_store(str(GOLDEN / name / "repository"))
    repository = Repository.open(store, Secret.passphrase(expected[secret]), Trust(None))
    found = repository.read_points()
    assert len(found.partials) == expected.get("partials", 1)
    assert len(found.moves) == expected.get("moves", 0)
    assert [p.id for p in found.points] == [p["id"] for p in expected["points"]]
    for point, wanted in zip(found.points, expected["points"], strict=True):
        assert point.seq == wanted["seq"]
        made = restore(repository, point, RestoreOptions(tmp_path / point.id, "raw"), Silent())
        disks = {f.target: {"size": f.virtual_size, "sha256": sha(f.path.read_bytes())} for f in made.files}
        assert disks == wanted["disks"]
        restored = {f.restored.name: f.restored.read_bytes() for f in made.boot_files}
        files = {name: {"size": len(data), "sha256": sha(data)} for name, data in restored.items()}
        assert files == wanted.get("files", {})
        assert (tmp_path / point.id / "domain.xml").read_text() == wanted["domain.xml"]
    assert verify(repository, None, 1.0, Silent()).damaged == ()


def test_golden_repository_can_be_written(tmp_path: Path) -> None:
    """This version goes on where the golden repository ends."""
    from tests.ram import RamDisk, RamGuest, RamHost

    shutil.copytree(GOLDEN / NAMES[0] / "repository", tmp_path / "repository")
    store = open_store(str(tmp_path / "repository"))
    expected = json.loads((GOLDEN / NAMES[0] / "expected.json").read_text())
    repository = Repository.open(store, Secret.passphrase(expected["passphrase"]), Trust(None))
    newest = repository.read_points().points[0]
    guest = RamGuest("guest", {"vda": RamDisk(bytearray(b"new" * 100_000))}, newest.uuid)
    host = RamHost(guest)
    point = backup(host, repository, "guest", BackupOptions(), Silent())  # type: ignore[arg-type]
    assert point.parent == newest.id
    assert verify(repository, None, 1.0, Silent()).damaged == ()
