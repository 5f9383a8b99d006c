"""What goes wrong in an operator's day: an exit code, one sentence, one hint, no traceback, nothing half done."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.lab.disk import Disk, MiB
from tests.lab.domain import Workhorse
from tests.lab.session import Lab
from tests.real.engine.program import Program
from tests.real.hypervisor.bootsector import tiny_file_system
from vmbackup.repository import Repository, frames
from vmbackup.repository.keys import Secret
from vmbackup.repository.trust import Trust
from vmbackup.storage_backends import open_store

pytestmark = pytest.mark.real
MakeDomain = Callable[..., Workhorse]
_VERSION_AT = struct.calcsize(">8s4s")  # the u16 of the format's version, in the first bytes of every object


@pytest.fixture
def program(work_dir: Path, scratch_dir: Path) -> Program:
    return Program.make(work_dir, scratch_dir)


def random_disk(horse: Workhorse, size: int, seed: int) -> None:
    horse.write_data("vda", 0, random.Random(seed).randbytes(size))


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def newer_config(program: Program, **changes: Any) -> None:
    """The repository's config, version 2, signed by its realm."""
    store = open_store(str(program.repository))
    secret = Secret.passphrase((program.folder / "passphrase").read_text().strip())
    repository = Repository.open(store, secret, Trust(None))
    document = {**repository.config.document, "version": 2, **changes}
    signed = frames.sign_document(b"CONF", document, repository.reader.signing)
    store.put("config.copy/2", signed)
    store.put("config/2", signed)


# Names and places


def test_no_libvirt(program: Program) -> None:
    program.uri = "qemu+unix:///system?socket=/nowhere/libvirt-sock"
    program.configure()
    assert program.refusal("backup", "some", code=1, says="libvirt") == "hypervisor"


def test_a_uri_that_is_none(program: Program) -> None:
    program.uri = "nonsense:///system"
    program.configure()
    assert program.refusal("backup", "some", code=1, says="nonsense") == "hypervisor"


def test_no_such_domain(program: Program) -> None:
    assert program.refusal("backup", "no-such-domain", code=5, says="no-such-domain") == "not_found"


def test_no_repository(work_dir: Path, scratch_dir: Path, lab: Lab) -> None:
    """Neither an empty folder nor none at all is a repository."""
    program = Program(work_dir, scratch_dir, work_dir / "repository")
    program.configure()
    (work_dir / "passphrase").write_text("a passphrase of nobody\n")
    (work_dir / "passphrase").chmod(0o600)
    program.refusal("list", code=5, says=str(program.repository))
    program.repository.mkdir()
    assert program.refusal("list", code=5, says=str(program.repository)) == "not_found"


def test_a_second_init(program: Program) -> None:
    """Nothing is touched: neither the repository nor the passphrase that opens it."""
    before = {name: (program.folder / name).read_bytes() for name in files(program.folder)}
    assert program.refusal("init", code=1, says="already holds a repository") == "repository"
    assert {name: (program.folder / name).read_bytes() for name in files(program.folder)} == before


# Keys and trust


def test_a_wrong_passphrase(program: Program) -> None:
    (program.folder / "passphrase").write_text("not the one\n")
    assert program.refusal("list", code=6, says="passphrase") == "access"


def test_a_newer_format(program: Program) -> None:
    """Believed where it is signed by the realm: anybody could write the number of a version."""
    secret = Secret.passphrase((program.folder / "passphrase").read_text().strip())
    repository = Repository.open(open_store(str(program.repository)), secret, Trust(None))
    for name in ("config/1", "config.copy/1"):
        path = program.repository / name
        head = bytearray(path.read_bytes()[: -frames.SIGNATURE])
        struct.pack_into(">H", head, _VERSION_AT, 2)
        path.write_bytes(head + repository.reader.signing.sign(frames._CONTEXT + head))
    assert program.refusal("list", code=1, says="newer version") == "repository"


def test_features_that_refuse_this_version(program: Program, make_domain: MakeDomain) -> None:
    newer_config(program, features={"ignore": [], "read_only": [], "refuse": ["striped-packs"]})
    assert program.refusal("list", code=1, says="striped-packs") == "repository"
    assert program.refusal("backup", make_domain().name, code=1, says="striped-packs") == "repository"


def test_features_that_allow_reading_only(program: Program, make_domain: MakeDomain) -> None:
    horse = make_domain()
    point = program.json("backup", horse.name)["points"][0]
    newer_config(program, features={"ignore": ["colours"], "read_only": ["striped-packs"], "refuse": []})
    assert program.json("list")["points"][0]["id"] == point["id"]
    program.json("restore", horse.name, "--output", str(program.folder / "restored"))
    assert program.refusal("backup", horse.name, code=1, says="striped-packs") == "repository"


def test_an_older_config(program: Program) -> None:
    """A store that was rolled back is noticed by a host that has seen the newer one."""
    newer_config(program)
    program.json("list")
    for name in ("config/2", "config.copy/2"):
        (program.repository / name).unlink()
    assert program.refusal("list", code=4, says="rolled back") == "damaged"


def test_another_repository_in_its_place(program: Program, work_dir: Path) -> None:
    """Another public key, opened by the same passphrase: nothing is encrypted for whoever put it there."""
    foreign = work_dir / "foreign"
    foreign.mkdir()
    shutil.copy2(program.folder / "passphrase", foreign / "passphrase")
    other = Program.make(foreign, program.scratch)
    shutil.rmtree(program.repository)
    shutil.copytree(other.repository, program.repository)
    assert program.refusal("list", code=4, says="another public key") == "damaged"
    assert program.refusal("backup", "some", code=4, says="another public key") == "damaged"


# Space and rights


@pytest.fixture
def small_store(work_dir: Path) -> Iterator[Path]:
    """A file system of 24 MiB for a repository."""
    place = work_dir / "small"
    place.mkdir()
    with tiny_file_system(place, "24m"):
        yield place


@pytest.mark.timeout(240)
def test_a_full_repository_disk(make_domain: MakeDomain, work_dir: Path, scratch_dir: Path, small_store: Path) -> None:
    """The run fails, what was there stays good, and with space the next run is incremental and right."""
    program = Program.make(work_dir, scratch_dir, small_store / "repository")
    horse = make_domain(Disk("vda", size=64 * MiB))
    random_disk(horse, 4 * MiB, 1)
    first = program.json("backup", horse.name)["points"][0]
    checkpoints, copy = horse.checkpoints(), horse.copy("vda")
    random_disk(horse, 48 * MiB, 2)
    program.refusal("backup", horse.name, code=1, says="space")
    assert horse.checkpoints() == checkpoints
    assert horse.domain.jobInfo()[0] == 0
    assert list(scratch_dir.iterdir()) == []
    assert [p["id"] for p in program.json("list")["points"]] == [first["id"]]
    assert program.json("verify", "--read-data")["damaged"] == []

    subprocess.run(["mount", "-o", "remount,size=200m", str(small_store)], check=True)
    second = program.json("backup", horse.name)["points"][0]
    assert (second["parent"], second["disks"][0]["mode"]) == (first["id"], "incremental")
    assert second["warnings"] == []
    assert program.json("verify", "--read-data")["damaged"] == []
    for point, source in ((first, copy), (second, horse.copy("vda"))):
        (file,) = program.json("restore", point["id"], "--output", str(work_dir / point["id"]))["files"]
        compared = subprocess.run(["qemu-img", "compare", str(source), file["path"]], check=False)
        assert compared.returncode == 0
    assert files(program.repository / "sessions") == []


@pytest.mark.parametrize("image_format", ["qcow2", "raw"])
def test_a_full_disk_to_restore_to(
    program: Program, make_domain: MakeDomain, work_dir: Path, image_format: str
) -> None:
    """No image under its final name, and nothing half written beside it."""
    horse = make_domain(Disk("vda", size=32 * MiB), Disk("vdb", size=MiB))
    random_disk(horse, 32 * MiB, 3)
    program.json("backup", horse.name)
    place = work_dir / "narrow"
    place.mkdir()
    with tiny_file_system(place, "8m"):
        output = place / "restored"
        arguments = ("restore", horse.name, "--output", str(output), "--format", image_format)
        assert program.refusal(*arguments, code=1, says="space") == "target"
        assert files(place) == []


def test_a_scratch_folder_below_a_file(program: Program, make_domain: MakeDomain) -> None:
    blocked = program.folder / "file"
    blocked.write_text("in the way")
    program = replace(program, scratch=blocked / "scratch")
    program.configure()
    horse = make_domain()
    assert program.refusal("backup", horse.name, code=1, says=str(blocked)) == "hypervisor"
    assert horse.checkpoints() == []


def test_a_scratch_folder_that_is_read_only(program: Program, make_domain: MakeDomain, work_dir: Path) -> None:
    place = work_dir / "read-only"
    place.mkdir()
    with tiny_file_system(place, "64m"):
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        program = replace(program, scratch=place)
        program.configure()
        horse = make_domain()
        assert program.refusal("backup", horse.name, code=1, says=str(place)) == "hypervisor"
        assert horse.checkpoints() == []
        assert horse.domain.jobInfo()[0] == 0


def test_an_image_of_the_old_format(program: Program, make_domain: MakeDomain, work_dir: Path) -> None:
    """qcow2 v2 holds no bitmaps: read whole each time, with the reason; nothing is stored twice."""
    horse = make_domain(Disk("vda", size=8 * MiB, compat="0.10"))
    random_disk(horse, 4 * MiB, 4)
    first = program.json("backup", horse.name)["points"][0]
    horse.write("vda", MiB, 65536, 0x42)
    second = program.json("backup", horse.name)["points"][0]
    assert [p["disks"][0]["mode"] for p in (first, second)] == ["full", "reread"]
    assert "qcow2 v2" in second["disks"][0]["reason"]
    assert "qemu-img amend" in second["disks"][0]["reason"]
    assert [p["status"] for p in (first, second)] == ["success", "success"]
    assert second["disks"][0]["changed_bytes"] == 65536
    (file,) = program.json("restore", second["id"], "--output", str(work_dir / "restored"))["files"]
    horse.compare("vda", Path(file["path"]))


def test_drives_that_hold_nothing_of_the_guest(program: Program, make_domain: MakeDomain, lab: Lab) -> None:
    """An empty CD drive is left out, and that is no warning: most guests have one."""
    horse = make_domain(Disk("vda", size=8 * MiB), start=False)
    drive = "<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk></devices>"
    lab.connection.defineXML(horse.domain.XMLDesc(0).replace("</devices>", drive))
    horse.start()
    point = program.json("backup", horse.name)["points"][0]
    assert (point["status"], point["warnings"]) == ("success", [])
    assert [d["target"] for d in point["disks"]] == ["vda"]
