"""A served restore point in the hands of other people's clients: nbdinfo, nbdcopy, qemu-img, QEMU with a guest."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab import machine
from tests.lab.domain import remove_domain
from tests.lab.session import Lab
from tests.unit.cli.conftest import CONFIG
from tests.unit.cli.serving import Served, passphrase_beside
from tests.unit.engine.kit import RamKit
from tests.unit.nbd.test_nbd_server_tls import Certificates
from vmbackup.nbd import NbdClient, RequestFailed

MIB = 1 << 20
SIZE = 40 * MIB
CHUNK = 64 << 10
MARK_AT = 33 * MIB
MARK = b"read by a guest\n"

_missing = [name for name in ("qemu-img", "nbdinfo", "nbdcopy") if not shutil.which(name)]
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(_missing), reason=f"{', '.join(_missing)} missing: apt install qemu-utils libnbd-bin"),
]

# In 16-bit code: int 13h AH=42h (extended read) of the sector at MARK_AT to 8000h by the packet behind the code, then
# 16 bytes of it to COM1, each when the port is free.
_CODE = bytes.fromhex(
    "fc31c08ed88ec08ed0bc007cbe2c7cb442cd1372febe0080b91000bafd03eca82074fbacbaf803eee2f1ebfe"
    "10000100008000000008010000000000"
)


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> RamKit:
    """Two points of a disk of data and holes whose first sector is a program."""
    folder, chance = tmp_path_factory.mktemp("served"), random.Random(4)
    made = RamKit(folder, {"vda": SIZE, "vdb": 3 * MIB}, chunk_size=CHUNK)
    made.disk().write(0, _CODE.ljust(510, b"\0") + b"\x55\xaa")
    made.disk().write(MIB, chance.randbytes(9 * MIB))
    made.disk("vdb").write(5000, b"another disk")
    made.backup()
    for _ in range(100):
        made.disk().write(chance.randrange(MIB, SIZE - 9000), chance.randbytes(chance.choice([512, 9000])))
    made.disk().write(3 * MIB, bytes(2 * MIB))
    made.disk().write(MARK_AT, MARK)
    made.backup()
    passphrase_beside(folder)
    (folder / "config.toml").write_text(CONFIG.format(folder=folder))
    (folder / "config.toml").chmod(0o600)
    return made


@pytest.fixture
def serve(kit: RamKit) -> Iterator[Callable[..., Served]]:
    running: list[Served] = []

    def start(*args: str) -> Served:
        running.append(Served(kit.root / "config.toml", "guest@latest", *args))
        return running[-1]

    yield start
    for served in running:
        if served.process.returncode is None:
            assert served.stop()[0] == 0


@pytest.fixture
def uri(serve: Callable[..., Served], tmp_path: Path) -> str:
    return serve("--socket", str(tmp_path / "s")).ready["uris"]["vda"]


@pytest.fixture
def image(kit: RamKit, tmp_path: Path) -> Path:
    """What the disk was."""
    path = tmp_path / "wanted.raw"
    path.write_bytes(kit.kept[kit.points()[0].id]["vda"])
    return path


def run(*command: object, **options: object) -> str:
    done = subprocess.run([str(c) for c in command], check=False, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def test_nbdinfo_tells_exports_and_holes(uri: str, kit: RamKit, image: Path) -> None:
    listed = json.loads(run("nbdinfo", "--json", "--list", uri))
    assert [(e["export-name"], e["export-size"]) for e in listed["exports"]] == [("vda", SIZE), ("vdb", 3 * MIB)]
    first = json.loads(run("nbdinfo", "--json", uri))["exports"][0]
    assert first["is_read_only"] is True
    assert first["can_multi_conn"] is True
    data, at = image.read_bytes(), 0
    for run_ in json.loads(run("nbdinfo", "--json", "--map", uri)):
        assert run_["offset"] == at
        at += run_["length"]
        assert run_["type"] in (0, 3)
        if run_["type"] == 3:
            assert not any(data[run_["offset"] : at])
    assert at == SIZE


def test_nbdcopy_copies_all_of_it_and_keeps_holes(uri: str, image: Path, tmp_path: Path) -> None:
    """By several connections, each with many requests at a time."""
    run("nbdcopy", "--connections=4", uri, tmp_path / "copy.raw")
    assert (tmp_path / "copy.raw").read_bytes() == image.read_bytes()
    assert (tmp_path / "copy.raw").stat().st_blocks * 512 < 25 * MIB


def test_qemu_img_converts_and_compares(uri: str, image: Path, tmp_path: Path) -> None:
    run("qemu-img", "convert", "-W", "-m", "16", "-f", "raw", "-O", "qcow2", uri, tmp_path / "copy.qcow2")
    run("qemu-img", "check", tmp_path / "copy.qcow2")
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", uri, tmp_path / "copy.qcow2")
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, image)


def test_tls_with_certificates_of_both_sides(
    serve: Callable[..., Served], image: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """nbdcopy (GnuTLS) reads over TCP; without TLS, or with a stranger's certificate, it gets nothing."""
    made = Certificates(tmp_path_factory.mktemp("certificates"))
    options = ("--tls-cert", str(made.path("server")), "--tls-key", str(made.path("server")))
    served = serve("--listen", "localhost:0", *options, "--tls-client-ca", str(made.path("ca")))
    uri = served.ready["uris"]["vda"]
    for name, welcome in (("client", True), ("stranger", False)):
        folder = tmp_path / name
        folder.mkdir()
        for file, source in (("ca-cert", "ca"), ("client-cert", name), ("client-key", name)):
            shutil.copy(made.path(source), folder / f"{file}.pem")
        command = ["nbdcopy", f"{uri}?tls-certificates={folder}", str(tmp_path / f"{name}.raw")]
        assert (subprocess.run(command, capture_output=True).returncode == 0) is welcome
    assert (tmp_path / "client.raw").read_bytes() == image.read_bytes()
    plain = subprocess.run(["nbdinfo", uri.replace("nbds:", "nbd:")], capture_output=True, text=True)
    assert plain.returncode != 0
    assert "not supported" in plain.stderr  # libnbd's words for "TLS required"


def test_damage_is_an_error_for_its_range_alone(
    serve: Callable[..., Served], kit: RamKit, image: Path, tmp_path: Path
) -> None:
    """A client that copies the rest gets right bytes; the log says what is broken."""
    pack = max((p for p in kit.root.rglob("data/**/*") if p.is_file()), key=lambda p: p.stat().st_size)
    whole = pack.read_bytes()
    pack.chmod(0o600)
    pack.write_bytes(whole[:200_000] + bytes([whole[200_000] ^ 4]) + whole[200_001:])
    try:
        served = serve("--socket", str(tmp_path / "s"))
        assert served.ready
        done = subprocess.run(["nbdcopy", served.ready["uris"]["vda"], "null:"], capture_output=True, text=True)
        assert done.returncode != 0
        assert "Input/output error" in done.stderr
        wanted, wrong = image.read_bytes(), 0
        client = NbdClient.connect(str(tmp_path / "s"), "vda")
        for offset in range(0, SIZE, CHUNK):
            data = bytearray(CHUNK)
            try:
                client.read_into(offset, memoryview(data))
            except RequestFailed:
                wrong += 1
            else:
                assert data == wanted[offset : offset + CHUNK]
        client.close()
        assert wrong == 1
        _, _, err = served.stop()
        assert "disk vda: 65536 bytes at " in err
        assert "is damaged" in err
    finally:
        pack.write_bytes(whole)


def test_a_guest_boots_and_reads(lab: Lab, serve: Callable[..., Served]) -> None:
    """libvirt's guest has the export for its disk: its firmware loads the first sector, that reads another one."""
    folder = lab.new_folder("served")
    served = serve("--socket", str(folder / "s"))
    assert served.ready
    os.chown(folder / "s", *machine.qemu_user())
    output = folder / "serial"
    name = lab.new_name()
    xml = (
        f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>16</memory><vcpu>1</vcpu>"
        "<os><type arch='x86_64' machine='q35'>hvm</type><boot dev='hd'/></os><devices>"
        f"<emulator>{machine.program('qemu-system-x86_64')}</emulator>"
        "<disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='nbd' name='vda'>"
        f"<host transport='unix' socket='{folder / 's'}'/></source><target dev='vda' bus='virtio'/><readonly/></disk>"
        f"<serial type='file'><source path='{output}'/></serial>"
        "<controller type='usb' model='none'/><memballoon model='none'/></devices></domain>"
    )
    domain = lab.connection.defineXML(xml)
    try:
        domain.create()
        deadline = time.monotonic() + 60
        while MARK not in (output.read_bytes() if output.exists() else b""):
            assert time.monotonic() < deadline, output.read_bytes()
            time.sleep(0.1)
    finally:
        remove_domain(domain)
        served.stop()
        shutil.rmtree(folder)
