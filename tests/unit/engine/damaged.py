"""A repository in memory that holds two objects of every kind, and what can become of one."""

from __future__ import annotations

import copy
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from tests.unit.collection.steps import MemoryStore
from tests.unit.engine.kit import RamKit
from vmbackup.errors import DamageError
from vmbackup.repository import condemned, damage, frames, making, slots, tombstones
from vmbackup.repository.catalog import Catalog
from vmbackup.repository.chunks import ChunkReader, Secrets, Wanted
from vmbackup.repository.condemned import ObjectName
from vmbackup.repository.keys import Secret
from vmbackup.repository.layout import new_session
from vmbackup.repository.maps import extents
from vmbackup.repository.nodes import ZERO, Node, Ref
from vmbackup.repository.points import Point
from vmbackup.repository.session import Session
from vmbackup.repository.usage import session_of
from vmbackup.repository.writers import WriterKey

KIB = 1 << 10
CHUNK = 4 * KIB


@dataclass
class Specimen:
    """The kit of the repository, and its objects by kind; of each kind two, the older first."""

    kit: RamKit
    kinds: dict[str, list[str]] = field(default_factory=dict)

    def copied(self, root: Path) -> Specimen:
        """An independent copy, opened by a host that knew it when it was whole."""
        kit = copy.copy(self.kit)
        kit.root = root
        store: Any = MemoryStore(self.store.objects)
        kit.store = store
        shutil.copytree(self.kit.root / "trust", root / "trust", dirs_exist_ok=True)
        kit.trust = type(kit.trust)(root / "trust")
        kit.guest = copy.deepcopy(self.kit.guest)
        kit.host = type(kit.host)(kit.guest)
        kit.kept = dict(self.kit.kept)
        return Specimen(kit, self.kinds)

    @property
    def store(self) -> MemoryStore:
        store: Any = self.kit.store
        return store

    def put(self, key: str, data: bytes | None) -> None:
        """Another content, or none."""
        if data is None:
            del self.store.objects[key]
        else:
            self.store.objects[key] = (data, self.store.objects[key][1])

    def bytes_of(self, key: str) -> bytes:
        return self.store.objects[key][0]


def specimen(root: Path) -> Specimen:
    """Three points and a partial of a guest; two of all else."""
    store: Any = MemoryStore()
    kit = RamKit(root, {"vda": 256 * KIB}, CHUNK, store)
    chance = random.Random(1)
    kit.disk().write(0, chance.randbytes(150 * KIB))
    for _ in range(2):
        kit.backup()
    for point in kit.points():
        tombstones.forget(kit.repository, point.lineage, point.session)
    for number in range(3):
        if number == 2:
            _fail_twice(kit, chance)
        kit.disk().write(number * 40 * KIB, chance.randbytes(20 * KIB))
        kit.backup()
    _others(kit)
    made = Specimen(kit)
    made.kinds = _kinds(made)
    return made


def _fail_twice(kit: RamKit, chance: random.Random) -> None:
    """Failed runs leave partials."""

    def fail() -> None:
        raise RuntimeError("seal")

    kit.host.on_seal = fail
    for _ in range(2):
        kit.disk().write(200 * KIB, chance.randbytes(20 * KIB))
        with pytest.raises(RuntimeError, match="seal"):
            kit.backup()
    kit.host.on_seal = lambda: None


def _others(kit: RamKit) -> None:
    """What backups do not make."""
    repository = kit.repository
    lineage = kit.points()[0].lineage
    for number in range(2):
        slots.add(repository, Secret.passphrase(f"another {number}", random=True), "more")
        writer = WriterKey.generate(f"host{number}", "backup", "default")
        repository.store.put(*making.enrolment(kit.repository.reader, writer))
        Session(repository, lineage, 0, "another host").pin()
        tombstones.put_dead(repository, "default", [new_session()])
        repository.store.put(lineage.point(new_session()), frames.preamble(b"ABRT"))
        gone = ObjectName("data", lineage.id, new_session(), number)
        condemned.put(repository.store, "default", [gone])
        damage.record(repository.store, "default", [gone])


def _kinds(made: Specimen) -> dict[str, list[str]]:
    keys = sorted(made.store.objects, key=lambda key: (key.rpartition("/")[2], key))
    found = {
        folder: [key for key in keys if key.startswith(f"{folder}/")]
        for folder in (
            "config", "config.copy", "keys", "groups", "writers", "sessions", "data", "meta", "trash", "dead",
            "condemned", "damage",
        )
    }  # fmt: skip
    by_type: dict[bytes, list[str]] = {}
    for key in keys:
        if key.startswith(("index/", "points/")):
            by_type.setdefault(made.bytes_of(key)[8:12], []).append(key)
    listed = made.kit.repository.read_points()
    points = [point.key for point in reversed(listed.points)]
    live = {point.session.hex() for point in listed.points}
    found |= {"index part": by_type[b"IDXP"], "index root": by_type[b"IDXR"]}
    for kind in ("data", "meta", "index part", "index root"):
        found[kind] = [key for key in found[kind] if key.rpartition("/")[2].partition("-")[0] in live]
    own = f"keys/{made.kit.repository.slot}"
    found["keys"].remove(own)
    found["own slot"] = [next(key for key in found["keys"] if b'"kind":"passphrase"' in made.bytes_of(key)), own]
    found |= {"point": points, "partial": [point.key for point in listed.partials], "aborted": by_type[b"ABRT"]}
    return found


# What can become of an object: each gives the keys that are no more what they were.


def flipped(made: Specimen, keys: list[str]) -> list[str]:
    """A bit in the middle of the newest."""
    data = bytearray(made.bytes_of(keys[-1]))
    data[len(data) // 2] ^= 1
    made.put(keys[-1], bytes(data))
    return keys[-1:]


def cut(made: Specimen, keys: list[str]) -> list[str]:
    """The last byte of the newest is gone."""
    made.put(keys[-1], made.bytes_of(keys[-1])[:-1])
    return keys[-1:]


def deleted(made: Specimen, keys: list[str]) -> list[str]:
    """The newest is gone."""
    made.put(keys[-1], None)
    return keys[-1:]


def older(made: Specimen, keys: list[str]) -> list[str]:
    """The newest has the bytes of the one before."""
    made.put(keys[-1], made.bytes_of(keys[-2]))
    return keys[-1:]


def swapped(made: Specimen, keys: list[str]) -> list[str]:
    """The newest two have exchanged their bytes."""
    last = made.bytes_of(keys[-1])
    made.put(keys[-1], made.bytes_of(keys[-2]))
    made.put(keys[-2], last)
    return keys[-2:]


def foreign(made: Specimen, keys: list[str]) -> list[str]:
    """The newest is one of another realm."""
    kind = next(kind for kind, found in made.kinds.items() if found == keys)
    made.put(keys[-1], _another().bytes_of(_another().kinds[kind][-1]))
    return keys[-1:]


@cache
def _another() -> Specimen:
    with tempfile.TemporaryDirectory() as folder:
        return specimen(Path(folder))


DAMAGES: list[Callable[[Specimen, list[str]], list[str]]] = [flipped, cut, deleted, older, swapped, foreign]


def contents(kit: RamKit, point: Point) -> dict[str, bytes]:
    """The disks of a point as a restore reads them. Raises DamageError."""
    catalog = kit.repository.catalog(point.lineage.group)
    reader = ChunkReader(catalog, Secrets(kit.repository, point.lineage.group))
    found = {}
    for disk in point.disks:
        image = bytearray(disk.root.chunks * CHUNK)
        nodes = partial(_node, catalog, point)
        for extent in extents(disk.root, nodes):
            if extent.session != ZERO:
                wanted = [Wanted(extent.slot, extent.chunks, extent.first)]
                for number, data in reader.read(session_of(point, extent.session), extent.pack, wanted):
                    image[number * CHUNK : (number + 1) * CHUNK] = data
        found[disk.target] = bytes(image[: disk.virtual_size])
    return found


def _node(catalog: Catalog, point: Point, ref: Ref, first: int) -> Node:
    return catalog.node(ref, first, session_of(point, ref.session), CHUNK)


def unreadable(kit: RamKit) -> set[str]:
    """The points that do not restore; whatever does is what it was."""
    broken = set()
    for point in kit.points():
        try:
            assert contents(kit, point) == kit.kept[point.id], point.id
            kit.repository.documents(point)
        except DamageError:
            broken.add(point.id)
    return broken
