"""`restore` as it is typed: beforehand with --dry-run, onto an image, and what its values mean."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.unit.engine.kit import RamKit
from vmbackup.cli import main
from vmbackup.cli.restore_cost import _egress, _price
from vmbackup.cli.restore_values import passphrases, targets
from vmbackup.config.models import Repository
from vmbackup.engine.restore.cost import Cost
from vmbackup.errors import UsageError, VmbackupError

MIB = 1 << 20
CONFIG = """
[libvirt]
uri = "test:///{folder}/none.xml"
[repositories.local]
url = "file://{folder}/repository"
passphrase_file = "{folder}/passphrase"
[host]
cache_dir = "{folder}/cache"
[daemon]
state_dir = "{folder}/state"
"""


@pytest.fixture
def kit(tmp_path: Path) -> RamKit:
    made = RamKit(tmp_path, {"vda": 96 * MIB}, chunk_size=64 << 10)
    made.disk().write(0, random.Random(1).randbytes(80 * MIB))
    made.backup()
    (tmp_path / "passphrase").write_text("a passphrase for tests")
    (tmp_path / "passphrase").chmod(0o600)
    (tmp_path / "config.toml").write_text(CONFIG.format(folder=tmp_path))
    return made


def run(folder: Path, *words: str) -> int:
    return main(["--config", str(folder / "config.toml"), *words])


@pytest.mark.parametrize("how", [(), ("--chain",)])
def test_warnings_of_the_backup_are_told(
    kit: RamKit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: tuple[str, ...],
) -> None:
    """Whoever restores a point of a disk that was half restored is told so; the exit code is the restore's own."""
    monkeypatch.setattr("tests.ram.RamJob.notes", ("disk vda may be half restored",))
    point = kit.backup()
    told = f"restore point {point.id} was made with a warning: disk vda may be half restored"
    assert run(tmp_path, "restore", point.id, "--output", str(tmp_path / "text"), *how) == 0
    assert f"warning: {told}" in capsys.readouterr().err
    assert run(tmp_path, "--json", "restore", point.id, "--output", str(tmp_path / "json"), *how) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["point_warnings"], document["warnings"]) == ([told], [])
    (before,) = {found.id for found in kit.points()} - {point.id}
    assert run(tmp_path, "restore", before, "--output", str(tmp_path / "before"), *how) == 0
    assert "warning" not in capsys.readouterr().err


def test_told_beforehand(kit: RamKit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What would be read and how long it takes, once that was seen; nothing is written."""
    out = str(tmp_path / "out")
    assert run(tmp_path, "restore", "guest", "--output", out, "--dry-run") == 0
    told = capsys.readouterr().out
    assert "would be restored; nothing was written:" in told
    assert "reads about 80.1 MiB by" in told
    assert "costs nothing: it is read from a folder" in told
    assert "how long: not known" in told
    assert not (tmp_path / "out").exists()
    assert run(tmp_path, "restore", "guest", "--output", out, "--format", "raw") == 0
    capsys.readouterr()
    assert run(tmp_path, "--json", "restore", "guest", "--output", str(tmp_path / "b"), "--dry-run") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["disks"][0]["data_bytes"] == 80 * MIB
    assert document["disks"][0]["path"] == str(tmp_path / "b/vda.qcow2")
    assert document["egress"] is None
    assert document["seconds"] > 0
    assert run(tmp_path, "restore", "guest", "--output", out, "--format", "raw", "--dry-run") == 1
    assert "vda.raw is already there" in capsys.readouterr().err


def test_what_is_missing_is_told_beforehand(kit: RamKit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the exit code of the restore itself, also of a chain; nothing is made."""
    out = str(tmp_path / "out")
    assert run(tmp_path, "restore", "guest", "--output", out, "--chain", "--dry-run") == 0
    assert "reads about 80.1 MiB by" in capsys.readouterr().out
    pack = next((tmp_path / "repository/data").rglob("*-*"))
    pack.unlink()
    for more in ((), ("--chain",)):
        assert run(tmp_path, "restore", "guest", "--output", out, "--dry-run", *more) == 4
        assert f"{pack.relative_to(tmp_path / 'repository')} is missing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"provider": "hetzner:fsn1"}, "costs up to 1.00 EUR at hetzner:fsn1, at 0.001 EUR a GB beyond any free"),
        ({"provider": "aws:eu-central-1"}, "what reading costs there is not known: set egress_price"),
        ({"provider": "ovh:gra", "egress_price": "0.02 EUR"}, "costs up to 20.00 EUR at ovh:gra, at 0.02 EUR a GB"),
    ],
)
def test_a_price_is_told_only_where_it_is_known(keys: dict[str, Any], told: str) -> None:
    settings = Repository(url="s3://bucket", **keys)
    said = _price({"store": settings.url, "egress": _egress(settings, Cost(read_bytes=10**12))})
    assert said.startswith(told)


def test_onto_an_image(kit: RamKit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where there is no libvirt to ask, which is said."""
    image = tmp_path / "image"
    image.write_bytes(bytes(96 * MIB))
    assert run(tmp_path, "restore", "guest", "--to", f"vda={image}") == 0
    told = capsys.readouterr()
    assert f"libvirt cannot say whose disk {image} is" in told.err
    assert image.read_bytes() == kit.disk().data
    assert str(image) in told.out


def test_values(tmp_path: Path) -> None:
    """Each disk goes to one place, and has one passphrase."""
    assert targets(["vda=/dev/x", "vdb=/a=b"]) == {"vda": Path("/dev/x"), "vdb": Path("/a=b")}
    for wrong in (["/dev/x"], ["=/dev/x"], ["vda="], ["vda=/a", "vda=/b"]):
        with pytest.raises(UsageError):
            targets(wrong)
    key = tmp_path / "key"
    key.write_text("open sesame\n")
    key.chmod(0o600)
    assert passphrases([str(key), f"vda={key}"]) == {"": b"open sesame", "vda": b"open sesame"}
    with pytest.raises(UsageError, match="two files are named for the passphrase of disk vda"):
        passphrases([f"vda={key}", f"vda={key}"])
    with pytest.raises(VmbackupError) as missing:
        passphrases(["/nowhere"])
    assert missing.value.hint == "name a file with the passphrase of the guest's disk, mode 0600"
