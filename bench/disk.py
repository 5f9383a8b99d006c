"""The bench's disk of real data: made once, kept in the lab's cache."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.lab import machine

from .files import collect
from .measure import BenchError, run

MiB, GiB, TiB = 1 << 20, 1 << 30, 1 << 40
SEED = 3
UUID = "7d1d3e02-0b3c-4f6e-9a53-000000000003"   # fixed, so that the same files give the same image
RECIPE = "1"    # another one makes the disk anew
REQUIRED_FREE = 3   # the making takes a tree, a raw image and the qcow2 at once


@dataclass(frozen=True)
class Kind:
    """What a disk shall be: its virtual size, and what it holds. Bytes."""

    name: str
    size: int
    files: int
    noise: int


FULL = Kind("full", 10 * GiB, 4608 * MiB, 600 * MiB)
QUICK = Kind("quick", 1 * GiB, 400 * MiB, 60 * MiB)


@dataclass(frozen=True)
class BenchDisk:
    """A qcow2 image in the cache; `told` says what is in it. Not to be written: use copies."""

    path: Path
    size: int
    data: int
    md5: str
    told: str


def bench_disk(kind: Kind, note: Callable[[str], None]) -> BenchDisk:
    """The cached disk; makes it if there is none (some minutes). Raises BenchError."""
    cache = machine.CACHE_DIR / "bench"   # without a dash: the guest image's sweep leaves it alone
    folder = cache / f"{kind.name}{RECIPE}"
    cache.mkdir(mode=0o755, parents=True, exist_ok=True)
    with (cache / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            for old in cache.glob(f"{kind.name}*"):
                shutil.rmtree(old)
            for old in cache.glob("making.*"):
                shutil.rmtree(old)
            note(f"making the disk of real data (once, some minutes): {folder}")
            with tempfile.TemporaryDirectory(dir=cache, prefix="making.") as making:
                _make(Path(making), kind)
                (Path(making) / "image").rename(folder)
    facts = json.loads((folder / "facts.json").read_text())
    return BenchDisk(**{**facts, "path": folder / "disk.qcow2"})


def _make(making: Path, kind: Kind) -> None:
    wanted = REQUIRED_FREE * (kind.files + kind.noise)
    if shutil.disk_usage(making).free < wanted:
        raise BenchError(f"{making.parent} needs {wanted / GiB:.0f} GiB of room to make the disk")
    tree, image, raw = making / "tree", making / "image", making / "disk.raw"
    tree.mkdir()
    image.mkdir(mode=0o755)
    source = collect(tree, kind.files)
    _noise(tree / "noise", kind.noise)
    with raw.open("wb") as file:
        file.truncate(kind.size)
    options = f"hash_seed={UUID},lazy_itable_init=0,lazy_journal_init=0"
    run("env", "E2FSPROGS_FAKE_TIME=1700000000", machine.program("mke2fs"), "-q", "-F", "-t", "ext4", "-m", "0",
        "-U", UUID, "-E", options, "-d", str(tree), str(raw))
    shutil.rmtree(tree)
    disk = image / "disk.qcow2"
    run(machine.program("qemu-img"), "convert", "-f", "raw", "-O", "qcow2", str(raw), str(disk))
    with disk.open("rb") as file:
        os.fsync(file.fileno())
        md5 = hashlib.file_digest(file, "md5").hexdigest()
    disk.chmod(0o644)
    told = f"ext4: {source}; {kind.noise // MiB} MiB random"
    facts = BenchDisk(path=Path("disk.qcow2"), size=kind.size, data=disk.stat().st_blocks * 512, md5=md5, told=told)
    (image / "facts.json").write_text(json.dumps({**asdict(facts), "path": str(facts.path)}))


def _noise(path: Path, size: int) -> None:
    """Bytes that do not compress, the same each time."""
    source = random.Random(SEED)
    with path.open("wb") as file:
        for _ in range(size // MiB):
            file.write(source.randbytes(MiB))
