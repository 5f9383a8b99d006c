"""Scratch space on another machine: libvirt is asked how much is used, and how much its storage pool has free."""

import math
from collections.abc import Sequence
from typing import Any

from vmbackup.errors import ScratchFullError
from vmbackup.hypervisor import _libvirt as lv
from vmbackup.hypervisor.connection import Connection
from vmbackup.hypervisor.domains import handle
from vmbackup.hypervisor.live.scratch import NEED_MOST, ScratchWatch
from vmbackup.hypervisor.source import DomainInfo
from vmbackup.hypervisor.tidy.intents import Intent

_STATS_BLOCK, _WITH_BACKING = 32, 1 << 30  # VIR_DOMAIN_STATS_BLOCK, VIR_CONNECT_GET_ALL_DOMAINS_STATS_BACKING
_AVAILABLE = 3  # of virStoragePoolInfo


class RemoteScratch(ScratchWatch):
    """A ScratchWatch whose files are another machine's. Where no pool has the folder, only their growth is watched.

    That their storage has lost something cannot be seen from here.
    """

    def __init__(
        self, connection: Connection, info: DomainInfo, folder: str, paths: Sequence[str], allowance: int
    ) -> None:
        self._connection, self._info = connection, info
        super().__init__(folder, paths, allowance)

    def open(self) -> None:
        """There is nothing to open here."""

    def _used(self, paths: Sequence[str]) -> int:
        def ask(raw: Any) -> int:
            found = raw.domainListGetStats([handle(raw, self._info)], _STATS_BLOCK, _WITH_BACKING)
            stats = found[0][1] if found else {}
            nodes = [f"block.{n}" for n in range(int(stats.get("block.count", 0)))]
            return sum(int(stats.get(f"{node}.allocation", 0)) for node in nodes if stats.get(f"{node}.path") in paths)

        return self._connection.call("ask for the scratch files", ask, self._info.name)

    def _free(self) -> float:
        return self._connection.call("ask for the scratch space", lambda raw: free_in_pool(raw, self._folder))


def free_in_pool(raw: Any, folder: str) -> float:
    """Bytes free in the storage pool of that folder; infinite where no pool that runs has it."""
    libvirt = lv.binding()
    try:
        pool = raw.storagePoolLookupByTargetPath(folder)
        pool.refresh(0)
        return float(pool.info()[_AVAILABLE])
    except libvirt.libvirtError:
        return math.inf


def remote_budget(connection: Connection, folder: str, need: int, others: Sequence[Intent]) -> int:
    """As scratch.budget. Without a pool that tells what is free: as much as any run wants."""
    free = connection.call("ask for the scratch space", lambda raw: free_in_pool(raw, folder))
    if math.isinf(free):
        return max(need, NEED_MOST)
    left = int(free) - sum(other.scratch_bytes for other in others if other.uri == connection.uri)
    if left < need:
        raise ScratchFullError(
            f"{folder} on the hypervisor has {left >> 20} MiB free for this run, which needs {need >> 20} MiB",
            "free some space there, or set [libvirt] scratch_dir to a larger local file system of the hypervisor",
        )
    return left
