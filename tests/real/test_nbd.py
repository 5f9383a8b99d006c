"""The NBD client against QEMU's server; nbdinfo and nbdcopy are the judges."""

import itertools
import json
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from vmbackup.nbd import (
    ConnectionLost,
    ExportMissing,
    Extent,
    Kind,
    MetaContextMissing,
    NbdClient,
    Unsupported,
    align,
    extents,
)
from vmbackup.nbd.protocol import BASE_ALLOCATION

KIB, MIB = 1 << 10, 1 << 20
BITMAP = "qemu:dirty-bitmap:b"

_missing = [name for name in ("qemu-nbd", "qemu-img", "qemu-io", "nbdinfo", "nbdcopy") if not shutil.which(name)]
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(_missing), reason=f"{', '.join(_missing)} missing: apt install qemu-utils libnbd-bin"),
]


def run(*command: object) -> str:
    done = subprocess.run([str(c) for c in command], check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def qemu_io(image: Path, *commands: str) -> None:
    args = [word for command in commands for word in ("-c", command)]
    run("qemu-io", "-d", "unmap", "-f", image.suffix[1:], *args, image)


class Export:
    """A running qemu-nbd."""

    def __init__(self, image: Path, *options: str) -> None:
        with image.open("rb") as file:
            os.fsync(file.fileno())  # else a raw file's map changes as the kernel writes it out
        self.socket = str(image) + f"-{random.randrange(1 << 32):08x}"
        command = ["qemu-nbd", "-t", "-e", "8", "-x", "disk", "-f", image.suffix[1:], "-k", self.socket]
        self.process = subprocess.Popen([*command, *options, str(image)])
        self.uri = f"nbd+unix:///disk?socket={self.socket}"

    def connect(self, *contexts: str) -> NbdClient:
        assert wait_for(self._listens), "qemu-nbd did not start"
        return NbdClient.connect(self.socket, "disk", contexts=contexts, timeout=20)

    def _listens(self) -> bool:
        """Its socket is there a moment before."""
        try:
            with socket.socket(socket.AF_UNIX) as one:
                one.connect(self.socket)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


def wait_for(condition: Callable[[], bool]) -> bool:
    for _ in range(500):
        if condition():
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def export() -> Iterator[Callable[..., Export]]:
    """`export(image, *options of qemu-nbd)`; the suffix of the image is its format."""
    running: list[Export] = []

    def start(image: Path, *options: str) -> Export:
        running.append(Export(image, *options))
        return running[-1]

    yield start
    for one in running:
        one.stop()


def make(folder: Path, kind: str, size: int) -> Path:
    if kind == "raw":
        image = folder / "disk.raw"
        run("qemu-img", "create", "-q", "-f", "raw", image, size)
    else:
        image = folder / "disk.qcow2"
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"cluster_size={kind}", image, size)
    return image


def scatter(image: Path, rng: random.Random, size: int, count: int) -> None:
    """Writes, zeroes and discards at random places, some over others, some off every border."""
    commands = []
    for _ in range(count):
        length = rng.choice([512, 4 * KIB, 64 * KIB, 300 * KIB])
        at = rng.randrange((size - length) // 512) * 512
        data = f"write -P {rng.randrange(1, 255)}"
        verb = rng.choice([data, data, "write -z", "write -z -u"])
        commands.append(f"{verb} {at} {length}")
        commands.append(f"discard {rng.randrange(size // (64 * KIB)) * 64 * KIB} 64k")
    qemu_io(image, *commands)


def nbdinfo_map(export: Export, context: str) -> list[tuple[int, int, int]]:
    """(offset, length, flags), equal neighbours joined."""
    joined: list[tuple[int, int, int]] = []
    for one in json.loads(run("nbdinfo", f"--map={context}", "--json", export.uri)):
        offset, length, flags = one["offset"], one["length"], one["type"]
        if joined and joined[-1][2] == flags:
            joined[-1] = (joined[-1][0], joined[-1][1] + length, flags)
        else:
            joined.append((offset, length, flags))
    return joined


def judged(allocation: list[tuple[int, int, int]], dirty: list[tuple[int, int, int]] | None) -> list[Extent]:
    """What nbdinfo's maps say, merged the plain way: at every border of either."""
    size = allocation[-1][0] + allocation[-1][1]
    dirty = dirty or [(0, size, 1)]
    borders = sorted({r[0] for r in allocation} | {r[0] for r in dirty} | {size})
    runs: list[Extent] = []
    a = d = 0
    for begin, end in itertools.pairwise(borders):
        while allocation[a][0] + allocation[a][1] <= begin:
            a += 1
        while dirty[d][0] + dirty[d][1] <= begin:
            d += 1
        kind = Kind.UNCHANGED if not dirty[d][2] & 1 else Kind.ZERO if allocation[a][2] & 2 else Kind.DATA
        if runs and runs[-1].kind is kind:
            runs[-1] = Extent(runs[-1].offset, runs[-1].length + end - begin, kind)
        else:
            runs.append(Extent(begin, end - begin, kind))
    return runs


def drain(client: NbdClient) -> None:
    while client.outstanding:
        client.wait()


def copy(client: NbdClient, runs: Iterable[Extent]) -> bytes:
    """The disk, data read eight requests at a time, zeros from the map."""
    disk = bytearray(b"\xee") * client.size
    view = memoryview(disk)
    for offset, length, kind in runs:
        if kind is Kind.ZERO:
            disk[offset : offset + length] = bytes(length)
            continue
        for at in range(offset, offset + length, MIB):
            if client.outstanding == 8:
                client.wait()
            client.submit_read(at, view[at : min(at + MIB, offset + length)])
    drain(client)
    return bytes(disk)


def nbdcopied(export: Export, folder: Path) -> bytes:
    target = folder / "nbdcopied"
    run("nbdcopy", export.uri, target)
    return target.read_bytes()


@pytest.mark.parametrize("kind", ["raw", "4k", "64k"])
@pytest.mark.parametrize("seed", [1, 2])
def test_extents_and_bytes_are_those_of_nbdinfo_and_nbdcopy(tmp_path, export, kind, seed) -> None:
    """Also on a disk whose size no chunk and no cluster divides."""
    rng = random.Random(seed)
    size = 48 * MIB + 512 * 37
    image = make(tmp_path, kind, size)
    scatter(image, rng, size, 60)
    running = export(image, "-r")
    client = running.connect(BASE_ALLOCATION)
    assert (client.size, client.read_only, client.can_multi_conn) == (size, True, True)
    runs = list(extents(client, None, 0, size, None))
    assert runs == judged(nbdinfo_map(running, BASE_ALLOCATION), None)
    reference = nbdcopied(running, tmp_path)
    assert copy(client, runs) == reference
    whole = bytearray(size)
    client.read_into(0, memoryview(whole))
    assert whole == reference
    chunks = list(align(runs, 64 * KIB, size))
    assert sum(r.length for r in chunks) == -(-size // (64 * KIB)) * 64 * KIB
    assert not any(any(reference[o : o + n]) for o, n, k in chunks if k is Kind.ZERO)
    for _ in range(50):
        at, length = rng.randrange(size - 1), rng.randrange(1, 70_000)
        piece = memoryview(bytearray(min(length, size - at)))
        client.read_into(at, piece)
        assert piece == reference[at : at + len(piece)]
    client.close()


def test_a_bitmap_with_dirty_zeros_and_discards(tmp_path, export) -> None:
    """Dirty and zero is ZERO, whether written as zeros or discarded; clean is UNCHANGED, though it holds data."""
    size = 256 * MIB
    image = make(tmp_path, "64k", size)
    qemu_io(image, "write -P 1 0 200M")
    run("qemu-img", "bitmap", "--add", image, "b")
    qemu_io(image, "write -P 2 10M 64k", "write -z 20M 1M", "write -z -u 30M 1M", "discard 40M 1M")
    qemu_io(image, "write -P 3 220M 64k")
    scatter(image, random.Random(3), size, 40)
    running = export(image, "-r", "-B", "b")
    allocation, bitmap = running.connect(BASE_ALLOCATION), running.connect(BITMAP)
    runs = list(extents(allocation, bitmap, 0, size, BITMAP))
    assert runs == judged(nbdinfo_map(running, BASE_ALLOCATION), nbdinfo_map(running, BITMAP))
    assert {r.kind for r in runs} == set(Kind)
    both = running.connect(BITMAP, BASE_ALLOCATION)
    assert list(extents(both, both, 0, size, BITMAP)) == runs
    begin, end = 9 * MIB + 5, 231 * MIB
    part = list(extents(allocation, bitmap, begin, end, BITMAP))
    assert (part[0].offset, sum(r.length for r in part)) == (begin, end - begin)
    for client in (allocation, bitmap, both):
        client.close()


def test_an_empty_increment_of_a_tebibyte(tmp_path, export) -> None:
    """512 calls, and less than 50 ms of Python."""
    image = make(tmp_path, "64k", 1 << 40)
    run("qemu-img", "bitmap", "--add", image, "b")
    running = export(image, "-r", "-B", "b")
    allocation, bitmap = running.connect(BASE_ALLOCATION), running.connect(BITMAP)
    began = time.process_time()
    runs = list(extents(allocation, bitmap, 0, 1 << 40, BITMAP))
    spent = time.process_time() - began
    assert runs == [(0, 1 << 40, Kind.UNCHANGED)]
    assert spent < 0.05
    allocation.close()
    bitmap.close()


def test_more_extents_than_a_reply_holds(tmp_path, export) -> None:
    """132,000 runs, in allocation and in the bitmap: QEMU cuts its replies at 131,072."""
    step, count = 8 * KIB, 66_000
    image = make(tmp_path, "4k", step * count)
    run("qemu-img", "bitmap", "--add", "-g", "4096", image, "b")
    running = export(image, "--cache=unsafe")
    client = running.connect()
    block = b"\x5a" * 4 * KIB
    for n in range(count):
        if client.outstanding == 16:
            client.wait()
        client.submit_write(n * step, [block])
    drain(client)
    client.close()
    running.stop()
    running = export(image, "-r", "-B", "b")
    allocation, bitmap = running.connect(BASE_ALLOCATION), running.connect(BITMAP)
    assert len(bitmap.block_status(0, step * count)[BITMAP]) == 131_072
    runs = list(extents(allocation, bitmap, 0, step * count, BITMAP))
    expected = [
        run
        for at in range(0, step * count, step)
        for run in (Extent(at, 4096, Kind.DATA), Extent(at + 4096, 4096, Kind.UNCHANGED))
    ]
    assert runs == expected
    full = list(extents(allocation, None, 0, step * count, None))
    assert full == judged(nbdinfo_map(running, BASE_ALLOCATION), None)
    assert len(full) == 2 * count
    allocation.close()
    bitmap.close()


@pytest.mark.parametrize("kind", ["raw", "4k", "64k"])
def test_what_is_written_is_in_the_image(tmp_path, export, kind) -> None:
    """Writes of many pieces, several outstanding, zeroes kept or trimmed, trims and flushes, against a model."""
    rng = random.Random(kind)
    size = 32 * MIB + 512
    image = make(tmp_path, kind, size)
    running = export(image, "--discard=unmap")
    client = running.connect(BASE_ALLOCATION)
    assert not client.read_only
    model = bytearray(size)
    under_way: list[tuple[int, int]] = []
    for _ in range(300):
        length = rng.choice([1, 512, 5000, 64 * KIB, 3 * MIB])
        at = rng.randrange(size - length)
        verb = rng.choice(["write", "write", "write", "write", "zero", "keep", "trim"])
        if verb == "trim":
            at, length = at // (64 * KIB) * 64 * KIB, 64 * KIB
        if len(under_way) == 16 or any(at < o + n and o < at + length for o, n in under_way):
            drain(client)  # those under way may be done in any order
            under_way.clear()
        data = rng.randbytes(length) if verb == "write" else bytes(length)
        if verb == "write":
            cut = rng.randrange(length + 1)
            client.submit_write(at, [data[:cut], memoryview(data)[cut:]])
            under_way.append((at, length))
        elif verb == "trim":
            client.trim(at, length)
        else:
            client.zero(at, length, may_trim=verb == "zero")
        model[at : at + length] = data
    drain(client)
    client.zero(16 * MIB, 4 * MIB)
    model[16 * MIB : 20 * MIB] = bytes(4 * MIB)
    assert client.block_status(16 * MIB, 4 * MIB)[BASE_ALLOCATION] == [(4 * MIB, 3)]
    client.flush()
    back = bytearray(size)
    client.read_into(0, memoryview(back))
    assert back == model
    client.close()
    running.stop()
    flat = tmp_path / "flat"
    run("qemu-img", "convert", "-O", "raw", "-f", image.suffix[1:], image, flat)
    assert flat.read_bytes()[:size] == model


def test_many_outstanding_writes(tmp_path, export) -> None:
    """A disk written sixteen large requests at a time, from pieces, is the disk that is read back."""
    size = 256 * MIB
    image = make(tmp_path, "64k", size)
    client = export(image, "--cache=unsafe").connect()
    rng = random.Random(7)
    blocks = [rng.randbytes(64 * KIB) for _ in range(64)]
    for at in range(0, size, 4 * MIB):
        if client.outstanding == 16:
            client.wait()
        client.submit_write(at, [blocks[(at // MIB + n) % 64] for n in range(64)])
    drain(client)
    back = memoryview(bytearray(4 * MIB))
    for at in range(0, size, 4 * MIB):
        client.read_into(at, back)
        assert back == b"".join(blocks[(at // MIB + n) % 64] for n in range(64))
    client.close()


def test_over_tcp(tmp_path) -> None:
    image = make(tmp_path, "raw", MIB)
    image.write_bytes(random.Random(5).randbytes(MIB))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(["qemu-nbd", "-t", "-r", "-f", "raw", "-b", "127.0.0.1", "-p", str(port), str(image)])

    def up() -> bool:
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", port)) == 0

    try:
        assert wait_for(up)
        client = NbdClient.connect(("127.0.0.1", port), "")
        back = bytearray(MIB)
        client.read_into(0, memoryview(back))
        assert back == image.read_bytes()
        client.close()
    finally:
        server.terminate()
        server.wait(20)


def test_qemu_takes_the_whole_handshake_at_once(tmp_path, export) -> None:
    running = export(make(tmp_path, "64k", MIB), "-r")
    in_turns = running.connect(BASE_ALLOCATION)
    client = NbdClient.connect(running.socket, "disk", contexts=[BASE_ALLOCATION], at_once=True)
    for name in ("size", "flags", "block_size", "contexts"):
        assert getattr(client, name) == getattr(in_turns, name), name
    client.read_into(0, memoryview(bytearray(MIB)))
    assert client.block_status(0, MIB) == in_turns.block_status(0, MIB)
    client.close()
    with pytest.raises(MetaContextMissing, match=BITMAP):
        NbdClient.connect(running.socket, "disk", contexts=[BITMAP], at_once=True)
    with pytest.raises(ExportMissing, match="'other'"):
        NbdClient.connect(running.socket, "other", at_once=True)
    in_turns.close()


def test_what_is_not_there_or_not_allowed_is_told(tmp_path, export) -> None:
    image = make(tmp_path, "64k", MIB)
    running = export(image, "-r")
    client = running.connect(BASE_ALLOCATION)
    with pytest.raises(Unsupported, match=r"write on export 'disk' .* read-only"):
        client.write(0, b"x")
    client.close()
    with pytest.raises(MetaContextMissing, match=BITMAP) as caught:
        running.connect(BASE_ALLOCATION, BITMAP)
    assert caught.value.missing == (BITMAP,)
    with pytest.raises(ExportMissing, match="'other'"):
        NbdClient.connect(running.socket, "other")


def test_the_death_of_the_server_is_told_at_once(tmp_path, export) -> None:
    image = make(tmp_path, "64k", 64 * MIB)
    running = export(image, "-r")
    client = running.connect()
    buffer = memoryview(bytearray(MIB))
    client.read_into(0, buffer)
    running.process.kill()
    running.process.wait()
    began = time.monotonic()
    with pytest.raises(ConnectionLost, match="on export 'disk'"):
        client.read_into(0, buffer)
    assert time.monotonic() - began < 2
