"""`python -m bench.s3`: puts of packs by the store, and by a bare loop of boto3, against Ceph on this machine.

Each round has a Ceph of its own, so that neither pays for the other's data; who begins changes each time.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.lab.ceph import USERS, Ceph, plain_client
from vmbackup.storage_backends import S3Settings, open_store

ROUNDS, THREADS, OBJECTS = 5, 4, 8
SIZE = 32 << 20  # bytes; a pack
WANTED = 0.8  # of the bare loop's throughput

Put = Callable[[str, Any], Any]


def main() -> int:
    bodies = [bytearray(os.urandom(SIZE)) for _ in range(THREADS)]
    ratios = []
    for number in range(ROUNDS):
        rates: dict[str, float] = {}
        for name in ("store", "bare")[:: 1 if number % 2 else -1]:
            rates[name] = _store(bodies) if name == "store" else _bare(bodies)
        ratios.append(rates["store"] / rates["bare"])
        print(f"round {number + 1}: store {rates['store']:.0f} MB/s, bare boto3 {rates['bare']:.0f} MB/s, "
              f"ratio {ratios[-1]:.2f} (load {os.getloadavg()[0]:.1f})", flush=True)
    median = statistics.median(ratios)
    print(f"{THREADS} threads, {OBJECTS} objects of {SIZE >> 20} MiB: median ratio {median:.2f} (wanted: {WANTED})")
    return 0 if median >= WANTED else 1


def _store(bodies: list[bytearray]) -> float:
    with Ceph() as ceph:
        store = open_store("s3://bench/prefix", S3Settings(ceph.http, access_key=USERS["vmbackup"][0],
                                                           secret_key=USERS["vmbackup"][1]), create=True)
        rate = _rate(store.put, bodies)
        store.close()
    return rate


def _bare(bodies: list[bytearray]) -> float:
    with Ceph() as ceph:
        client = plain_client(ceph.http, *USERS["vmbackup"])
        client.create_bucket(Bucket="bench")
        rate = _rate(lambda key, body: client.put_object(Bucket="bench", Key=key, Body=body), bodies)
        client.close()
    return rate


def _rate(put: Put, bodies: list[bytearray]) -> float:
    """Bytes a microsecond, after one put that makes the connections' beginnings nobody's cost."""
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda n: put(f"warm/{n}", bodies[n][:1000]), range(THREADS)))
        started = time.perf_counter()
        list(pool.map(lambda n: put(f"data/{n}", bodies[n % THREADS]), range(OBJECTS)))
        return OBJECTS * SIZE / (time.perf_counter() - started) / 1e6


if __name__ == "__main__":
    sys.exit(main())
