"""Makes the golden repositories `v1-files` and `v1-files-replica`: `python -m tests.golden.make_files`. Never remade.

Their guest is started from a kernel and an initrd of its host, which change; the second is a replica of the first.
"""

from __future__ import annotations

import json
import random
import shutil
import socket
import tempfile
from pathlib import Path

import pytest

from tests.golden.make import HERE, KIB
from tests.unit.copy.pair import ReplicaPair
from tests.unit.engine.kit import RamKit, sha
from vmbackup.hypervisor.source import BootFile
from vmbackup.repository import Repository


def make() -> None:
    chance = random.Random("v1-files")
    held: dict[str, dict[str, bytes]] = {}
    with tempfile.TemporaryDirectory(prefix="boot-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "hypervisor")
        kit = RamKit(HERE / "v1-files", {"vda": 64 * KIB}, 4 * KIB)
        kernel, initrd = Path(folder, "vmlinuz"), Path(folder, "initrd")
        kit.guest.boot_files = [BootFile("kernel", str(kernel)), BootFile("initrd", str(initrd))]
        kernel.write_bytes(chance.randbytes(30 * KIB + 77))
        for number in range(3):
            initrd.write_bytes(b"text that compresses well. " * 500 + bytes(20 * KIB) + chance.randbytes(number * 999))
            kit.disk().write(number * 8 * KIB, chance.randbytes(4 * KIB))
            held[kit.backup().id] = {path.name: path.read_bytes() for path in (kernel, initrd)}
        kernel.unlink()
        held[kit.backup().id] = {"initrd": initrd.read_bytes()}
        pair = ReplicaPair(kit)
        pair.copy()
    expect(kit, kit.repository, "v1-files", held)
    (HERE / "v1-files-replica").mkdir()
    expect(kit, pair.there, "v1-files-replica", held)
    (kit.root / "there").rename(HERE / "v1-files-replica" / "repository")
    for left in ("trust", "locks"):
        shutil.rmtree(kit.root / left, ignore_errors=True)


def expect(kit: RamKit, repository: Repository, name: str, held: dict[str, dict[str, bytes]]) -> None:
    expected = {
        "passphrase": "a passphrase for tests",
        "recovery_key": kit.recovery_key,
        "partials": 0,
        "points": [
            {
                "id": p.id,
                "seq": p.seq,
                "domain.xml": "<domain><name>guest</name></domain>",
                "disks": {t: {"size": len(d), "sha256": sha(d)} for t, d in kit.kept[p.id].items()},
                "files": {t: {"size": len(d), "sha256": sha(d)} for t, d in held[p.id].items()},
            }
            for p in repository.read_points().points
        ],
    }
    (HERE / name / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    make()
