"""One run of one command, measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LAUNCHER = Path(__file__).with_name("_launch.py")
READ_BYTES = 4 << 20
TICKS = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """Something the bench needs failed; the message says which command, and how it ended."""


@dataclass(frozen=True)
class Cost:
    """What a run took. Seconds and bytes.

    `cpu` is user and system time of the command's whole process tree, `qemu_cpu` that of the guest's QEMU meanwhile,
    `peak` the largest resident set of any one process of the tree, `stored` what the file system holds more than
    before, `sync` how long the file system then took to write what the command had left in memory, `seal` the wait
    of vmbackup's seal (None: no seal, or the program does not tell).
    """

    wall: float
    cpu: float
    qemu_cpu: float
    peak: int
    stored: int
    sync: float
    seal: float | None = None
    output: str = ""


def _environment() -> dict[str, str]:
    """Ours, with Python's bytecode kept, as it is for what a package manager installed."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def measure(command: Sequence[str], folder: Path, *, qemu: int | None = None, grows: Path | None = None,
            environment: Mapping[str, str] | None = None, warm: Sequence[Path] = ()) -> Cost:
    """Runs the command in `folder`, with `warm` in the page cache and nothing to be written back before it.

    `qemu` is a process whose CPU time is counted apart, `grows` the file or folder in which the command stores.
    Raises BenchError if the command fails; its output is then in the message.
    """
    for path in warm:
        read_whole(path)
    sync(folder)
    before, qemu_before = stored_bytes(grows), cpu_seconds(qemu)
    result, log = folder / "result.json", folder / "log"
    with log.open("w+") as errors:
        done = subprocess.run([sys.executable, "-I", "-S", str(LAUNCHER), str(result), *command], cwd=folder,
                              env={**_environment(), **(environment or {})}, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=errors, check=False, text=True)
        errors.seek(0)
        told = errors.read()
    qemu_cpu = cpu_seconds(qemu) - qemu_before
    figures = json.loads(result.read_text()) if done.returncode == 0 else {"code": done.returncode}
    if figures["code"]:
        text = "\n".join((done.stdout + told).strip().splitlines()[-12:])
        raise BenchError(f"`{' '.join(command)[:300]}` failed ({figures['code']}):\n{text}")
    waited = sync(folder)
    return Cost(wall=figures["wall"], cpu=figures["user"] + figures["system"], qemu_cpu=qemu_cpu, peak=figures["peak"],
                stored=stored_bytes(grows) - before, sync=waited, output=done.stdout)


def run(*command: str) -> str:
    """Runs a command that is not measured; its output. Raises BenchError."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                          check=False)
    if done.returncode:
        text = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
        raise BenchError(f"`{' '.join(command)[:300]}` failed ({done.returncode}): {text}")
    return done.stdout


def sync(folder: Path) -> float:
    """Writes all dirty pages of the folder's file system; the seconds it took."""
    start = os.times().elapsed
    run("sync", "-f", str(folder))
    return os.times().elapsed - start


def read_whole(path: Path) -> None:
    """Reads a file, or all files of a folder, into the page cache."""
    buffer = bytearray(READ_BYTES)
    for file in _files(path):
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def stored_bytes(path: Path | None) -> int:
    """What a file or folder takes on its file system; 0 if it is not there."""
    return sum(file.stat().st_blocks * 512 for file in _files(path)) if path is not None else 0


def cpu_seconds(pid: int | None) -> float:
    """User and system time of a process so far (proc(5), stat, fields 14 and 15)."""
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path] if path.exists() else []
    return sorted(file for file in path.rglob("*") if file.is_file() and not file.is_symlink())
