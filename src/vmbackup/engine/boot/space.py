"""How much space a booted guest needs on local disks, and whether it is there."""

import contextlib
import os

from vmbackup.engine.boot.records import Booted
from vmbackup.errors import TargetError
from vmbackup.nbd.client import NbdClient
from vmbackup.nbd.extents import Kind, extents

_CONTEXT = "base:allocation"
# Of an image beside its data: tables take 1/8192 with clusters of 64 KiB, and the guest goes on writing meanwhile.
_ROOM = 64 << 20


def check_space(booted: Booted) -> None:
    """Whether the folder of the disks to be has room for what they lack. Raises TargetError, NbdError."""
    folder = booted.output or ""
    need = sum(_data_bytes(booted, disk.target) + _taken(booted.overlay(disk.target)) for disk in booted.disks)
    have = sum(_taken(booted.image(disk.target)) for disk in booted.disks)
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    lack = max(0, need - have) + _ROOM
    if free < lack:
        raise TargetError(
            f"{folder} has {_mib(free)} free; the disks of {booted.name} need up to {_mib(lack)}",
            "make room there, then run this again; the guest runs on",
        )


def is_full(folder: str) -> bool:
    """Whether next to nothing is left on its file system."""
    with contextlib.suppress(OSError):
        found = os.statvfs(folder)
        return found.f_bavail * found.f_frsize < _ROOM // 16
    return False


def _data_bytes(booted: Booted, target: str) -> int:
    """Bytes of a served disk that are not zero."""
    return sum(end - start for start, end in data_runs(booted, target))


def data_runs(booted: Booted, target: str) -> list[tuple[int, int]]:
    """Where a served disk is not zero: from where to where. Raises NbdError."""
    client = NbdClient.connect(booted.socket, target, contexts=(_CONTEXT,))
    try:
        runs = extents(client, None, 0, client.size, None) if client.size else iter(())
        return [(run.offset, run.offset + run.length) for run in runs if run.kind is Kind.DATA]
    finally:
        client.close()


def _taken(path: str) -> int:
    try:
        return os.stat(path).st_blocks * 512
    except FileNotFoundError:
        return 0


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"
