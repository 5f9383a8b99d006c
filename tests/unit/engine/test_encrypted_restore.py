"""Disks that were encrypted, and images with their space reserved: never silently otherwise."""

from __future__ import annotations

import json
import random
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.lab.luks import create_luks
from tests.unit.engine.kit import RamKit
from vmbackup.engine.images import qcow2_target
from vmbackup.engine.images.image_options import ImageOptions, ImageWishes, image_options
from vmbackup.engine.restore.flat import RestoreOptions, restore
from vmbackup.errors import TargetError, UsageError
from vmbackup.hypervisor.qemu_secret import QemuSecret
from vmbackup.progress import Silent
from vmbackup.repository.records import DiskRecord

MIB = 1 << 20
SIZE = 8 * MIB
KEY = {"vda": b"open sesame"}


@pytest.fixture(autouse=True)
def _cheap_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """LUKS makes a key cost seconds of CPU, each time that it is opened."""
    create = qcow2_target.create_options

    def cheap(options: ImageOptions) -> list[str]:
        *rest, last = create(options)
        prefix = "" if options.driver == "luks" else "encrypt."
        return [*rest, f"{last},{prefix}iter-time=10" if options.passphrase else last]

    monkeypatch.setattr(qcow2_target, "create_options", cheap)


@pytest.fixture
def kit(tmp_path: Path) -> RamKit:
    made = RamKit(tmp_path, {"vda": SIZE}, chunk_size=64 << 10)
    made.disk().write(MIB, random.Random(1).randbytes(4 * MIB))
    made.disk().attributes = {"encryption": "luks", "cluster_size": "65536", "compat": "1.1"}
    made.backup()
    return made


def into(kit: RamKit, options: RestoreOptions) -> Path:
    return restore(kit.repository, kit.points()[0], options, Silent()).files[0].path


def content(path: Path, driver: str, passphrase: bytes) -> bytes:
    """What a guest would read with the passphrase; fails with a wrong one."""
    key = {"key-secret": "key"} if driver == "luks" else {"encrypt": {"format": "luks", "key-secret": "key"}}
    image = {"driver": driver, "file": {"driver": "file", "filename": str(path)}, **key}
    raw = path.with_suffix(".plain")
    with QemuSecret(passphrase) as secret:
        command = ["qemu-img", "convert", *secret.arguments, "-O", "raw", f"json:{json.dumps(image)}", str(raw)]
        subprocess.run(command, check=True, pass_fds=(secret.fd,))
    return raw.read_bytes()


def test_encrypted_again(kit: RamKit, tmp_path: Path) -> None:
    """qcow2 with LUKS, or raw LUKS; the passphrase opens it, its bytes are the disk's, and lie nowhere readable."""
    options = RestoreOptions(tmp_path / "a", workers=2, passphrases=KEY)
    reserved = replace(options, output=tmp_path / "c", preallocation="falloc")
    raw = replace(options, output=tmp_path / "b", format="raw")
    for chosen, driver in ((options, "qcow2"), (raw, "luks"), (reserved, "qcow2")):
        path = into(kit, chosen)
        assert content(path, driver, b"open sesame") == kit.disk().data
        assert bytes(kit.disk().data[MIB : MIB + 64]) not in path.read_bytes()
        with pytest.raises(subprocess.CalledProcessError):
            content(path, driver, b"another")


def test_a_key_that_took_no_time(kit: RamKit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU gives up where it cannot tell how long a key takes, which another try mends."""
    real, tries, after = qcow2_target.run_tool, [], 2

    def run_tool(command: list[str], path: Path, fds: tuple[int, ...]) -> None:
        tries.append(command)
        if len(tries) <= after:
            raise TargetError(f"cannot make {path}: qemu-img: {path}: Unable to get accurate CPU usage")
        real(command, path, fds)

    monkeypatch.setattr(qcow2_target, "run_tool", run_tool)
    path = into(kit, RestoreOptions(tmp_path / "a", workers=2, passphrases=KEY))
    assert content(path, "qcow2", b"open sesame") == kit.disk().data
    assert len(tries) > after
    tries.clear()
    after = 1000
    with pytest.raises(TargetError, match="accurate CPU usage"):
        into(kit, RestoreOptions(tmp_path / "b", workers=2, passphrases=KEY))
    assert len(tries) == 20


def test_never_silently_plain(kit: RamKit, tmp_path: Path) -> None:
    """Without the passphrase nothing is written; in plain only if that is said."""
    options = RestoreOptions(tmp_path / "out", "raw", workers=2)
    with pytest.raises(UsageError, match="disk vda was encrypted, and would be restored readable") as refused:
        into(kit, options)
    assert "--luks-passphrase-file vda=FILE" in refused.value.hint
    assert not (tmp_path / "out").exists()
    assert into(kit, replace(options, plain=True)).read_bytes() == kit.disk().data


def test_a_passphrase_that_encrypts_nothing_is_refused(tmp_path: Path) -> None:
    """Who names one takes the image for a secret one."""
    kit = RamKit(tmp_path, {"vda": SIZE}, chunk_size=64 << 10)
    kit.backup()
    options = RestoreOptions(tmp_path / "out", passphrases={"": b"open sesame"})
    with pytest.raises(UsageError, match=r"no disk of restore point .* was encrypted") as told:
        into(kit, options)
    assert "vda=FILE" in told.value.hint
    assert not (tmp_path / "out").exists()
    assert into(kit, replace(options, plain=True)).exists()


def test_gone_on_with(kit: RamKit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encrypted image is one too that is gone on with."""
    options = RestoreOptions(tmp_path / "out", workers=2, passphrases=KEY, sync_seconds=0)
    with monkeypatch.context() as patch:
        patch.setattr("vmbackup.engine.images.nbd_target.NbdTarget.finish", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            into(kit, options)
    done = restore(kit.repository, kit.points()[0], options, Silent())
    assert done.files[0].fetched_bytes < 4 * MIB
    assert content(done.files[0].path, "qcow2", b"open sesame") == kit.disk().data


def _interrupted(*_: object) -> int:
    raise KeyboardInterrupt


def test_onto_an_encrypted_image(kit: RamKit, tmp_path: Path) -> None:
    """With its passphrase; a wrong one is told, an image in plain refused."""
    path = tmp_path / "image.qcow2"
    create_luks(path, "qcow2", SIZE, b"open sesame")
    to = RestoreOptions(None, workers=2, to={"vda": path}, state_dir=tmp_path / "state")
    with pytest.raises(UsageError, match="was encrypted"):
        into(kit, to)
    with pytest.raises(TargetError, match=r"the passphrase of .*image\.qcow2 is wrong"):
        into(kit, replace(to, passphrases={"vda": b"another"}))
    into(kit, replace(to, passphrases={"": b"open sesame"}))
    assert content(path, "qcow2", b"open sesame") == kit.disk().data
    plain = tmp_path / "plain"
    plain.write_bytes(bytes(SIZE))
    with pytest.raises(UsageError, match=r"is to be encrypted, and .*plain is not"):
        into(kit, replace(to, to={"vda": plain}, passphrases=KEY))
    assert plain.read_bytes() == bytes(SIZE)


def test_the_passphrase_is_in_no_argument() -> None:
    """`ps` shows arguments to everybody."""
    with QemuSecret(b"open sesame") as secret:
        assert "open sesame" not in " ".join(secret.arguments)


@pytest.mark.parametrize("preallocation", ["off", "metadata", "falloc", "full"])
def test_space_as_it_was(tmp_path: Path, preallocation: str) -> None:
    """An image takes its space as the original did; raw is sparse, unless told otherwise."""
    kit = RamKit(tmp_path, {"vda": SIZE}, chunk_size=64 << 10)
    kit.disk().attributes = {"preallocation": preallocation} if preallocation in ("metadata", "falloc") else {}
    kit.backup()
    disk = kit.points()[0].disks[0]
    image = image_options(disk, ImageWishes())
    assert image.preallocation == (preallocation if preallocation in ("metadata", "falloc") else "off")
    path = into(kit, RestoreOptions(tmp_path / "out", workers=2, preallocation=preallocation))  # type: ignore[arg-type]
    assert (path.stat().st_blocks * 512 >= SIZE) == (preallocation in ("falloc", "full"))
    assert (path.stat().st_size >= SIZE) == (preallocation != "off")
    raw = into(kit, RestoreOptions(tmp_path / "raw", "raw", workers=2))
    assert raw.stat().st_blocks == 0
    if preallocation == "metadata":
        with pytest.raises(UsageError, match="a raw image has no metadata"):
            image_options(disk, ImageWishes("raw", "metadata"))


def test_hostile_options_are_not_taken_over(kit: RamKit) -> None:
    """What an image said of itself becomes no other option of qemu-img."""
    record: DiskRecord = kit.points()[0].disks[0]
    evil = {"compat": "1.1,backing_file=/etc/shadow", "cluster_size": "65536"}
    assert image_options(replace(record, attributes=evil), ImageWishes()).create == {"cluster_size": "65536"}
