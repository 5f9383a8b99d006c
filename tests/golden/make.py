"""Makes a golden repository: `python -m tests.golden.make NAME CHUNK_SIZE`. Never remade once committed.

A later format makes new ones beside it; every version reads all of them.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path

from tests.ram import RamDisk
from tests.unit.engine.kit import RamKit, sha
from vmbackup.errors import PointInTimeLostError

HERE = Path(__file__).parent
KIB = 1 << 10


def make(name: str, chunk_size: int) -> None:
    folder = HERE / name
    kit = RamKit(folder, {"vda": 700 * KIB + 512, "vdb": 96 * KIB}, chunk_size)
    chance = random.Random(name)
    kit.disk().write(0, chance.randbytes(70 * KIB))
    kit.disk().write(200 * KIB, b"text that compresses well. " * 3000)
    kit.disk().write(700 * KIB, b"tail" * 128)
    kit.disk("vdb").write(10 * KIB, chance.randbytes(20 * KIB))
    kit.backup()
    kit.disk().write(20 * KIB, bytes(40 * KIB))
    kit.disk().write(65 * KIB, b"across a border of chunks" * 50)
    kit.disk("vdb").write(50 * KIB, kit.disk().data[: 8 * KIB])
    kit.backup()
    _fail_once(kit, chance)
    kit.disk().resize(900 * KIB)
    kit.disk().write(890 * KIB, b"grown" * 100)
    kit.guest.disks["vdc"] = RamDisk(bytearray(16 * KIB))
    kit.backup()
    kit.backup()
    kit.check_all()
    expected = {
        "passphrase": "a passphrase for tests",
        "recovery_key": kit.recovery_key,
        "points": [
            {
                "id": p.id,
                "seq": p.seq,
                "domain.xml": "<domain><name>guest</name></domain>",
                "disks": {t: {"size": len(d), "sha256": sha(d)} for t, d in kit.kept[p.id].items()},
            }
            for p in kit.points()
        ],
    }
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    shutil.rmtree(folder / "trust")
    for left in folder.glob("restore*"):
        shutil.rmtree(left)


def _fail_once(kit: RamKit, chance: random.Random) -> None:
    """A failed run leaves a partial."""
    kit.disk().write(300 * KIB, chance.randbytes(30 * KIB))

    def lost() -> None:
        raise PointInTimeLostError("lost")

    kit.host.on_seal = lost
    try:
        kit.backup()
    except PointInTimeLostError:
        kit.host.on_seal = lambda: None


if __name__ == "__main__":
    make(sys.argv[1], int(sys.argv[2]))
