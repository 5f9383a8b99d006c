"""A reader written from docs/repository-format.md alone reads every golden repository: the document is enough."""

from __future__ import annotations

import ast
import hashlib
import hmac
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests import independent_reader
from tests.independent_reader import BROKEN, Reader

PROGRAM = Path(independent_reader.__file__)
GOLDEN = PROGRAM.parent / "golden"
NAMES = sorted(p.parent.name for p in GOLDEN.glob("*/expected.json"))


def expected_of(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / name / "expected.json").read_text())


def digests(folder: Path) -> dict[str, dict[str, object]]:
    found = {}
    for path in folder.glob("*.raw"):
        data = path.read_bytes()
        found[path.stem] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return found


def test_it_is_short_and_has_none_of_our_code() -> None:
    text = PROGRAM.read_text()
    assert text.count("\n") < 400
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {a.name for n in imports if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module or "" for n in imports if isinstance(n, ast.ImportFrom)}
    others = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert others == {"blake3", "cryptography", "zstandard"}


@pytest.mark.parametrize("secret", ["passphrase", "recovery_key"])
@pytest.mark.parametrize("name", NAMES)
def test_golden_repository(tmp_path: Path, name: str, secret: str) -> None:
    """The points that count, newest first, each with the recorded bytes; wherever chunks were moved to."""
    expected = expected_of(name)
    reader = Reader(GOLDEN / name / "repository", expected[secret])
    assert list(reader.points()) == [p["id"] for p in expected["points"]]
    for point in expected["points"]:
        folder = tmp_path / point["id"]
        folder.mkdir()
        reader.restore(reader.points()[point["id"]], folder)
        assert digests(folder) == point["disks"] | point.get("files", {})
        assert (folder / "domain.xml").read_text() == point["domain.xml"]


def test_as_a_program(tmp_path: Path) -> None:
    """As the page tells it: a file beside the three packages, with nothing of this project to be found."""
    alone = shutil.copy(PROGRAM, tmp_path)
    (tmp_path / "secret").write_text(expected_of("v1-64k")["passphrase"] + "\n")
    point = expected_of("v1-64k")["points"][-1]
    command = [sys.executable, "-I", alone, str(GOLDEN / "v1-64k" / "repository"), "secret"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert f"{point['id']} 'guest'" in listed.stdout.splitlines()
    for folder in (".", "new/folder"):
        subprocess.run([*command, point["id"], folder], check=True, cwd=tmp_path)
        assert digests(tmp_path / folder) == point["disks"]
    key = expected_of("v1-64k")["recovery_key"]
    (tmp_path / "secret").write_text(f"# As the file that init makes, in ABCD-EFGH.\n# With two lines.\n{key}\n")
    assert subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout == listed.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(GOLDEN / "v1-4k" / "repository", tmp_path / "repository")
    return tmp_path / "repository"


def read_newest(copy: Path, to: Path) -> dict[str, dict[str, object]]:
    to.mkdir()
    reader = Reader(copy, expected_of("v1-4k")["passphrase"])
    reader.restore(next(iter(reader.points().values())), to)
    return digests(to)


def test_packs_are_read_without_the_index_parts(copy: Path, tmp_path: Path) -> None:
    """A pack has its header too; its digest stands in the index root."""
    for part in copy.glob("index/*/*/*"):
        if part.read_bytes()[8:12] == b"IDXP":
            part.unlink()
    assert read_newest(copy, tmp_path / "out") == expected_of("v1-4k")["points"][0]["disks"]


def test_an_index_that_was_made_again_is_found(copy: Path, tmp_path: Path) -> None:
    """Under a higher number; its digest tells that it is the one."""
    for number, part in enumerate(sorted(copy.glob("index/*/*/*"))):
        part.rename(part.with_name(f"{part.name.partition('-')[0]}-{7 + number}"))
    assert read_newest(copy, tmp_path / "out") == expected_of("v1-4k")["points"][0]["disks"]


@pytest.mark.parametrize("folder", ["data", "meta", "points", "groups", "config", "keys"])
def test_flipped_bytes_never_pass(copy: Path, tmp_path: Path, folder: str) -> None:
    """Damage ends in an error or costs nothing, for another copy is there."""
    for path in sorted(p for p in copy.glob(f"{folder}/**/*") if p.is_file()):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    wanted = expected_of("v1-4k")["points"][0]["disks"]
    try:
        found = read_newest(copy, tmp_path / "out")
    except (*BROKEN, StopIteration):
        assert folder != "config", "config.copy has the same"
    else:
        assert (found, folder) == (wanted, "config")


def test_the_words_on_hpke_are_enough() -> None:
    """Section 1's X-Wing and RFC 9180 by hand open what the library's HPKE opens."""
    golden = GOLDEN / "v1-moved"
    reader = Reader(golden / "repository", expected_of("v1-moved")["passphrase"])
    for point in reader.points().values():
        epoch, session, group = point.info["epoch"], point.session, point.group
        sealed = bytes.fromhex(point.info["envelope"])
        info = b"vmbackup/1/envelope\0" + reader.realm + struct.pack(">I", epoch) + session + group.encode()
        by_hand = hpke_by_hand(reader.privates[epoch], info, sealed)
        assert by_hand == independent_reader.hpke_open(reader.privates[epoch], info, sealed)


def hpke_by_hand(private: bytes, info: bytes, sealed: bytes) -> bytes:
    ours, theirs = X25519PrivateKey.from_private_bytes(private[64:]), sealed[1088:1120]
    lattice = MLKEM768PrivateKey.from_seed_bytes(private[:64]).decapsulate(sealed[:1088])
    curve = ours.exchange(X25519PublicKey.from_public_bytes(theirs))
    label = bytes.fromhex("5c2e2f2f5e5c")
    shared = hashlib.sha3_256(lattice + curve + theirs + ours.public_key().public_bytes_raw() + label).digest()
    suite = b"HPKE-v1" + b"HPKE" + struct.pack(">HHH", 0x647A, 0x0001, 0x0002)

    def extract(name: bytes, key: bytes, salt: bytes = b"") -> bytes:
        return hmac.digest(salt or bytes(32), suite + name + key, "sha256")

    def expand(name: bytes, length: int) -> bytes:
        return hmac.digest(secret, struct.pack(">H", length) + suite + name + context + b"\1", "sha256")[:length]

    context = b"\0" + extract(b"psk_id_hash", b"") + extract(b"info_hash", info)
    secret = extract(b"secret", b"", shared)
    return AESGCM(expand(b"key", 32)).decrypt(expand(b"base_nonce", 12), sealed[1120:], b"")
