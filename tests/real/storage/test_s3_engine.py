"""Guests in memory are backed up into a bucket and restored from it, over a network that misbehaves, too."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.lab.fault_proxy import Fault, FaultProxy, Request
from tests.ram import RamDisk, RamGuest
from tests.unit.engine.kit import RamKit
from vmbackup.errors import VmbackupError
from vmbackup.repository.cache import Cache
from vmbackup.storage_backends import S3Settings, Store, StoreError
from vmbackup.storage_backends.s3_download import _acknowledge

pytestmark = pytest.mark.real

MIB = 1 << 20
SEED = 20261124


def _write(kit: RamKit, chance: random.Random, count: int) -> None:
    for _ in range(count):
        length = chance.choice([100, 4096, 70_000])
        kit.disk().write(chance.randrange(0, 8 * MIB - length), chance.randbytes(length))


def test_backups_and_restores(make_store: Callable[..., Store], tmp_path: Path) -> None:
    """Full and incremental points restore as they were, and verify reads every byte."""
    kit = RamKit(tmp_path, {"vda": 8 * MIB, "vdb": MIB}, store=make_store())
    chance = random.Random(SEED)
    for _ in range(3):
        _write(kit, chance, 20)
        kit.backup()
    kit.reopen()
    kit.check_all()


def test_hosts_share_chunks_through_a_bucket(make_store: Callable[..., Store], tmp_path: Path) -> None:
    """A second host fetches the hooks of what the first one stored, several at once, and stores almost nothing."""
    kit = RamKit(tmp_path, {"vda": 4096}, store=make_store())
    data = random.Random(SEED).randbytes(8 * MIB)
    for name in ("first", "second"):
        kit.host.add(RamGuest(name, {"vda": RamDisk(bytearray(data))}))
        kit.reopen()
        kit.repository.cache = Cache(tmp_path / f"{name}.sqlite")
        made = kit.backup_guest(name)
    assert made.disks[0].stored_bytes < 4 * MIB
    (point,) = [point for point in kit.points() if point.domain == "second"]
    assert kit.restored(point)["vda"] == data
    kit.reopen()
    assert len(kit.points()) == 2, "without a cache"
    assert kit.verify().damaged == ()


FAULTS = [
    Fault(status=503, code="SlowDown"),
    Fault(give=0),
    Fault(give=700),
    Fault(send=1000),
    Fault(swallow=True),
    Fault(claim=10),
]


def test_a_network_that_misbehaves(
    make_store: Callable[..., Store], settings: S3Settings, proxy: FaultProxy, tmp_path: Path
) -> None:
    """One request in seven meets a fault: all points are good all the same."""
    kit = RamKit(tmp_path, {"vda": 8 * MIB}, store=make_store(replace(settings, endpoint=proxy.http)))
    chance = random.Random(SEED)

    def choose(request: Request) -> Fault | None:
        fault = chance.choice(FAULTS) if chance.random() < 1 / 7 else None
        return None if fault and fault.swallow and request.method != "PUT" else fault

    proxy.faults = choose
    for _ in range(3):
        _write(kit, chance, 20)
        kit.backup()
    proxy.faults = lambda _: None
    kit.reopen()
    kit.check_all()


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("data/", Fault(swallow=True)),
        ("data/", Fault(send=1000)),
        ("index/", Fault(swallow=True)),
        ("points/", Fault(swallow=True)),
        ("points/", Fault(give=0)),
    ],
)
def test_a_run_that_fails_costs_no_earlier_point(
    make_store: Callable[..., Store], settings: S3Settings, proxy: FaultProxy, tmp_path: Path, kind: str, fault: Fault
) -> None:
    """Puts of one kind fail for ever, or are answered 200 and lost: the run fails, and what it left does no harm."""
    store = make_store(replace(settings, endpoint=proxy.http, patience=1.0))
    kit = RamKit(tmp_path, {"vda": 8 * MIB}, store=store)
    chance = random.Random(SEED)
    _write(kit, chance, 20)
    kit.backup()
    _write(kit, chance, 20)
    proxy.first(10**6, fault, "PUT", f"/{kind}")
    with pytest.raises((StoreError, VmbackupError)):
        kit.backup()
    proxy.faults = lambda _: None
    kit.reopen()
    for point in kit.points():
        if point.id not in kit.kept:  # the answers to the commit were lost, not the commit
            assert (kind, fault) == ("points/", Fault(give=0))
            kit.kept[point.id] = {target: bytes(disk.data) for target, disk in kit.guest.disks.items()}
    kit.backup()
    kit.check_all()


def test_an_answers_head_is_acknowledged_at_once(client: Any, bucket: str, prefix: str) -> None:
    """The way to the socket goes through the libraries' insides, and without it small reads only become slow."""
    client.put_object(Bucket=bucket, Key=f"{prefix}/x", Body=b"small")
    body = client.get_object(Bucket=bucket, Key=f"{prefix}/x")["Body"]
    sock = body._raw_stream.connection.sock
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
    _acknowledge(body)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK) == 1
    assert body.read() == b"small"
