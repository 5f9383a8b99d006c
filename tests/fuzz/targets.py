"""What is fuzzed: each parser, with bytes that anybody can write and with lies that only the holder of a key can.

A target is called with a chance; it makes an input, and has it parsed and used. Only VmbackupError may come out.
"""

from __future__ import annotations

import contextlib
import json
import random
import struct
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.fuzz.mutate import NUMBERS, lied, mutated
from tests.fuzz.nbd import converse
from tests.unit.collection.steps import MemoryStore
from tests.unit.engine.damaged import Specimen, contents, specimen
from vmbackup.cli.points import document, points_table, summaries
from vmbackup.engine.chain import anchor_of, earlier_disks
from vmbackup.errors import DamageError, VmbackupError
from vmbackup.hypervisor.tidy import checkpoints
from vmbackup.repository import condemned, damage, drills, frames, hooks, index, keys, moves, nodes, packs, points
from vmbackup.repository import tombstones as tombs
from vmbackup.repository.catalog import Catalog
from vmbackup.repository.collect import PruneOptions, prune
from vmbackup.repository.crypto import DATA, META, derive, digest, seal, unseal
from vmbackup.repository.layout import Lineage, SessionRef
from vmbackup.repository.nodes import Node, Ref, Run
from vmbackup.repository.points import Point
from vmbackup.repository.session import read_pin
from vmbackup.repository.trust import Trust
from vmbackup.repository.writers import WriterKeys

HEAD = frames.PREAMBLE.size
Target = Callable[[random.Random], object]


class Targets:
    """The parsers, with real objects and keys to begin with."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root
        self.made: Specimen = specimen(root)
        self.kit = self.made.kit
        self.repository = self.kit.repository
        self.keys = self.repository.group()
        self.objects = {key: data for key, (data, _) in self.made.store.objects.items()}
        self.samples = [data[:5000] for data in self.objects.values()]
        self.points = self.repository.read_points()

    def all(self) -> dict[str, Target]:
        """By name."""
        return {name.removeprefix("fuzz_"): getattr(self, name) for name in dir(self) if name.startswith("fuzz_")}

    def pick(self, chance: random.Random, kind: str) -> tuple[str, bytes]:
        key = chance.choice(self.made.kinds[kind])
        return key, self.objects[key]

    def bytes_of(self, chance: random.Random, kind: str) -> tuple[str, bytes]:
        key, data = self.pick(chance, kind)
        return key, mutated(chance, data, self.samples)

    # Documents

    def _document(self, chance: random.Random, kind: str, magic: bytes) -> tuple[str, bytes]:
        """Half the time bytes, else a lie that the realm signed."""
        key, data = self.pick(chance, kind)
        if chance.random() < 0.5:
            return key, mutated(chance, data, self.samples)
        told = frames.open_document(data, magic, key, self.repository.verify_key)
        return key, frames.sign_document(magic, lied(chance, told), self.repository.reader.signing)

    def fuzz_config(self, chance: random.Random) -> None:
        key, data = self._document(chance, "config", b"CONF")
        store: Any = MemoryStore({**self.made.store.objects, key: (data, 0.0)})
        del store.objects[key.replace("config/", "config.copy/")]
        type(self.repository)(store, self.repository.identity, self.repository.config, Trust(None)).recheck()

    def fuzz_group(self, chance: random.Random) -> None:
        key, data = self._document(chance, "groups", b"GRUP")
        told = frames.open_document(data, b"GRUP", key, self.repository.verify_key)
        self.repository._open_group("default", told, key)

    def fuzz_writer(self, chance: random.Random) -> None:
        key, data = self._document(chance, "writers", b"WRTR")
        self.repository.check_enrolment(key, data)

    def fuzz_key_slot(self, chance: random.Random) -> None:
        key, data = self.pick(chance, "own slot")
        if chance.random() < 0.3:
            keys.read_slot(mutated(chance, data, self.samples), key)
            return
        told = lied(chance, json.loads(data[HEAD + 4 : -32]))
        body = frames.canonical(told)
        head = frames.preamble(b"KEYS") + struct.pack(">I", len(body)) + body
        read = keys.read_slot(head + digest(head), key)
        keys.slot_info(read)
        costs = read["kdf"]
        if costs["memory_kib"] * costs["iterations"] <= 16384:  # what is dear and within bounds is no finding
            keys.unwrap(read, keys.Secret(b"?"), key)

    def fuzz_writer_key_file(self, chance: random.Random) -> None:
        own = self.repository.writer
        whole = WriterKeys(self.keys.realm, self.repository.verify_key, self.keys, own).to_text()
        text = mutated(chance, whole.encode(), self.samples)
        WriterKeys.from_text(text.decode("utf-8", "surrogateescape"), "the file")

    def fuzz_recovery_key(self, chance: random.Random) -> None:
        text = mutated(chance, self.kit.recovery_key.encode(), [b"-" * 20, b"A" * 40]).decode("latin-1")
        keys.Secret.passphrase(text)

    # Commits

    def fuzz_point_bytes(self, chance: random.Random) -> None:
        key, data = self.bytes_of(chance, chance.choice(["point", "partial", "aborted"]))
        self._use(key, data)

    def fuzz_point_lies(self, chance: random.Random) -> None:
        """As a stolen backup host signs them."""
        self._use(*self.lying_point(chance))

    def lying_point(self, chance: random.Random) -> tuple[str, bytes]:
        point = chance.choice([*self.points.points, *self.points.partials])
        grouped = {**point.public, "group": _group(point)} if chance.random() < 0.3 else point.public
        public = lied(chance, grouped) if chance.random() < 0.8 else grouped
        table = struct.pack(">I", len(point.rows) // 76) + point.rows
        if chance.random() < 0.3:
            table = mutated(chance, table, self.samples)
        kind = point.kind if chance.random() < 0.9 else chance.choice([0, 1, 2, 3, 4, 255])
        text = frames.canonical(public)
        head = points._head(kind, self.keys.current, point.lineage, point.session, point.writer)
        sealed = seal(self.keys.derive(self.keys.current, "point", point.session), head,
                      struct.pack(">I", len(text)) + text + table)  # fmt: skip
        private = point.sealed_private
        if kind == points.POINT:
            private = self._private(chance, point, head)
        data = head + struct.pack(">I", len(sealed)) + sealed + struct.pack(">I", len(private)) + private
        signed = self.repository.writer.private.sign(points._CONTEXT + self.keys.realm + data)
        return point.key, data + signed

    def _private(self, chance: random.Random, point: Point, head: bytes) -> bytes:
        secret = self.repository.open_envelope("default", point.session, point.public["epoch"], point.envelope, "")
        told = {"documents": [{"name": "domain.xml", "type": "x", "data": "00"}]}
        packed = zstandard.ZstdCompressor().compress(frames.canonical(lied(chance, told)))
        if chance.random() < 0.1:
            packed = zstandard.ZstdCompressor().compress(bytes(chance.choice([1, 1 << 20, 80 << 20])))
        if chance.random() < 0.1:
            packed = mutated(chance, packed, self.samples)
        return seal(derive(secret, self.keys.realm, "private", point.session), head, packed)

    def _use(self, key: str, data: bytes) -> None:
        """Read, listed, shown, taken for the parent of a run."""
        _, group, lineage, session = key.split("/")
        place = Lineage(group, bytes.fromhex(lineage))
        if points.is_abort(data):
            return
        point = points.decode(data, self.keys, place, bytes.fromhex(session), self.repository.writers())
        _ = point.table, point.uses, point.own_ref(0), point.locked_until, point.copied_from
        if point.kind == points.MOVES:
            moves.Moves([point.move_table()])
        if point.kind != points.POINT:
            return
        _ = point.seq, point.parent, point.envelope, point.id
        found = self.repository.read_points()
        found.points[:] = [point]
        told = summaries(found)
        json.dumps(document(told))
        points_table(told, told)
        anchor_of(point)
        earlier_disks(point, "host")
        self.repository.documents(point)

    def fuzz_moves(self, chance: random.Random) -> None:
        """Rows of a table of moves, as a stolen pruner signs them."""
        point = self.points.points[0]
        numbers = list(point.table)
        rows = [
            moves.Move(chance.choice([DATA, META]), *(chance.choice([*numbers, *numbers, *NUMBERS]) for _ in range(7)))
            for _ in range(chance.randrange(20))
        ]
        data = mutated(chance, moves.encode(rows), self.samples) if chance.random() < 0.3 else moves.encode(rows)
        table = moves.Table(point.lineage.id, point.session, point.table, moves.split(data, "a table"))
        catalog = self.repository.new_catalog("default")
        catalog.use([table])
        for ref in point.table.values():
            for kind in (DATA, META):
                catalog.places(ref, kind, 0, chance.choice(NUMBERS), chance.choice([1, 2, 4096]))

    # Pins, tombstones, lists

    def fuzz_pin(self, chance: random.Random) -> None:
        key, data = self.pick(chance, "sessions")
        _, _, lineage, session = key.split("/")
        place = Lineage("default", bytes.fromhex(lineage))
        if chance.random() < 0.5:
            told = lied(chance, read_pin(self.repository, place, bytes.fromhex(session), data))
            sealing = self.keys.derive(self.keys.current, "pin", bytes.fromhex(session))
            data = data[:HEAD] + seal(sealing, data[:HEAD], frames.canonical(told))
        else:
            data = mutated(chance, data, self.samples)
        pin = read_pin(self.repository, place, bytes.fromhex(session), data)
        packs.encode_births([packs.Birth(bytes(16), bytes(16), pin["epoch"], pin["id_key"], b"")])

    def fuzz_tombstone(self, chance: random.Random) -> None:
        kind = chance.choice(["trash", "dead"])
        key, data = self.pick(chance, kind)
        data = mutated(chance, data[:-72] if chance.random() < 0.5 else data, self.samples)
        if chance.random() < 0.5:
            data = tombs._signed(self.repository, data)
        store: Any = MemoryStore({**self.made.store.objects, key: (data, 0.0)})
        opened = type(self.repository)(store, self.repository.identity, self.repository.config, Trust(None))
        tombs.trashed(opened, "default")
        tombs.dead(opened, "default")
        tombs.check(opened, b"TRSH" if kind == "trash" else b"DEAD", "default", key)

    def fuzz_condemned(self, chance: random.Random) -> None:
        condemned.decode(*reversed(self.bytes_of(chance, "condemned")))

    def fuzz_damage(self, chance: random.Random) -> None:
        _, data = self.bytes_of(chance, "damage")
        damage.decode(data, f"damage/default/{digest(data)[:16].hex()}")

    def fuzz_drill(self, chance: random.Random) -> None:
        point = self.points.points[0]
        drill = chance.randbytes(16)
        time = datetime(2026, 11, 28, tzinfo=UTC)
        told = drills.Seen(time, True, 23.5, 31.0, "hv1", (("service ssh", True),), None)
        data = drills._encode(self.repository, point.lineage, point.session, drill, told)
        if chance.random() < 0.5:
            document = lied(chance, drills._document(told))
            secret = self.keys.derive(self.keys.current, "drill", drill)
            head = drills._head(self.keys.current, point.lineage, point.session, drill, self.repository.writer.id)
            sealed = seal(secret, head, frames.canonical(document))
            data = head + struct.pack(">I", len(sealed)) + sealed
            data += self.repository.writer.private.sign(drills._bound(self.repository) + data)
        else:
            data = mutated(chance, data, self.samples)
        drills._decode(self.repository, data, f"{point.lineage.prefix('drills', point.session)}{drill.hex()}")

    # Packs and indexes

    def _ref(self, chance: random.Random) -> SessionRef:
        return chance.choice(list(self.points.points[0].table.values()))

    def fuzz_pack_header(self, chance: random.Random) -> None:
        """A header as a stolen backup host seals it; its slots are read."""
        ref, kind = self._ref(chance), chance.choice([DATA, META])
        name = self.points.points[0].lineage.pack(kind, ref.session, 0)
        data = self.objects[name]
        length, slots = packs.read_footer(data[-16:], name)
        sealing = packs.header_key(kind, self.keys, 1, ref.session, 0)
        sealed = data[-16 - length : -16]
        plain = mutated(chance, unseal(sealing, _aad(slots), sealed, name), self.samples)
        if chance.random() < 0.1:
            slots = chance.choice(NUMBERS)
        header = packs.open_header(seal(sealing, _aad(slots), plain), sealing, 1, slots, name)
        opener = packs.SlotOpener(packs.aad_prefix(self.keys.realm, kind), self.keys.chunk_id_key())
        list(header.ids())
        for number in [0, 1, len(header) - 1, len(header), chance.choice(NUMBERS)]:
            header.id(number)
            with contextlib.suppress(VmbackupError):
                slot = header.slot(number)
                birth = header.birth_of(slot)
                self._open_slot(opener, slot, birth, kind, data, name)

    def _open_slot(self, opener: Any, slot: packs.Slot, birth: packs.Birth, kind: str, data: bytes, name: str) -> None:
        secret = bytes(32)
        with contextlib.suppress(VmbackupError):
            secret = self.repository.open_envelope("default", birth.session, birth.epoch, birth.envelope, name)
        key = packs.pack_key(kind, self.keys, birth, secret, slot.birth_pack)
        opener.open(slot, data[slot.offset : slot.offset + slot.stored], AESGCM(key), name)

    def fuzz_slot(self, chance: random.Random) -> None:
        """A chunk as a stolen backup host seals it: any length, any compression, any frame, a bomb."""
        key, id_key = bytes(32), self.keys.chunk_id_key()
        plain = bytes(chance.choice([0, 1, 4096, 1 << 20, 17 << 20]))
        data = zstandard.ZstdCompressor().compress(plain) if chance.random() < 0.8 else plain[:5000]
        if chance.random() < 0.5:
            data = mutated(chance, data, self.samples)
        told = chance.choice([len(plain), 0, 1, 4096, (1 << 24), (1 << 32) - 1])
        compression = chance.choice([0, 1, 1, 2, 255])
        prefix = packs.aad_prefix(self.keys.realm, DATA)
        aad = prefix + bytes(32) + struct.pack(">IB", told, compression)
        slot = packs.Slot(bytes(32), bytes(16), 0, len(data) + 16, told, compression, 0, 0, 0, 0)
        packs.SlotOpener(prefix, id_key).open(slot, AESGCM(key).encrypt(bytes(12), data, aad), AESGCM(key), "a slot")

    def fuzz_footer(self, chance: random.Random) -> None:
        _, data = self.bytes_of(chance, "data")
        packs.read_footer(data[-16:], "a pack")

    def fuzz_index_root(self, chance: random.Random) -> None:
        """A root as a stolen backup host seals it; all that it tells of is looked for."""
        ref = self._ref(chance)
        lineage = self.points.points[0].lineage
        name = lineage.index(ref.session, ref.root)
        data = self.objects[name]
        if chance.random() < 0.7:
            sealing = self.keys.derive(1, "index root", ref.session, ref.root)
            plain = mutated(chance, unseal(sealing, data[:HEAD], data[HEAD:], name), self.samples)
            data = data[:HEAD] + seal(sealing, data[:HEAD], plain)
        else:
            data = mutated(chance, data, self.samples)
        store: Any = MemoryStore({**self.made.store.objects, name: (data, 0.0)})
        catalog = Catalog(store, self.keys)
        lying = ref._replace(digest=digest(data))
        for kind, number in catalog.root(lying).packs:
            with contextlib.suppress(VmbackupError):
                catalog.header(lying, kind, number)

    def fuzz_index_part(self, chance: random.Random) -> None:
        key, data = self.bytes_of(chance, "index part")
        for _ in index.records(data, key):
            pass

    def fuzz_hooks(self, chance: random.Random) -> None:
        ref = self._ref(chance)
        data = hooks.encode(self.keys, ref.session, 1, {0: bytes(16), 3: bytes(80)})
        sealing = self.keys.derive(1, "hooks", ref.session, 1)
        plain = mutated(chance, unseal(sealing, data[:HEAD], data[HEAD:], ""), self.samples)
        data = data[:HEAD] + seal(sealing, data[:HEAD], plain)
        hooks.decode(data, self.keys, ref.session, 1, "hooks")

    # Maps

    def fuzz_node(self, chance: random.Random) -> None:
        """A node that is what its id says, with lies inside."""
        ref, data = self.lying_node(chance)
        node = nodes.decode(data, ref, 0, 4096, "a node")
        list(node.entries)
        list(node.children())
        node.data_packs()

    def lying_node(self, chance: random.Random) -> tuple[Ref, bytes]:
        runs = [Run(chance.choice([1, 2, 63]), chance.choice([0, 1, 2, 99]), chance.choice(NUMBERS), 0) for _ in "123"]
        node = Node.leaf(4096, 0, runs)
        if chance.random() < 0.4:
            inner = [Ref(0, run.chunks, run.session, run.pack, 0, bytes(32)) for run in runs]
            node = Node.inner(4096, 0, inner)
        data = mutated(chance, node.encode(), self.samples)
        level = data[0] if data else 0
        return Ref(level, node.chunks if chance.random() < 0.7 else chance.choice(NUMBERS), 1, 0, 0, bytes(32)), data

    def fuzz_checkpoint_xml(self, chance: random.Random) -> None:
        """The anchor of a point, as a stolen backup host signs it."""
        text = "<domaincheckpoint><name>x</name><creationTime>1700000000</creationTime></domaincheckpoint>"
        bomb = '<!DOCTYPE a [<!ENTITY b "bbbbbbbbbb"><!ENTITY c "&b;&b;&b;&b;">]><a>&c;</a>'
        deep = "<a>" * chance.choice([10, 100_000]) + "</a>"
        data = mutated(chance, chance.choice([text, text, bomb, deep]).encode(), [bomb.encode(), text.encode()])
        created = checkpoints.created(data.decode("utf-8", "replace"))
        assert created.isascii()
        assert created.isdecimal()

    def fuzz_nbd_server(self, chance: random.Random) -> None:
        """A client of `serve`, as anybody who reaches its socket."""
        converse(chance)

    # The repository as a whole

    def fuzz_everything(self, chance: random.Random) -> None:
        """One object is other bytes, or a point lies: listed, verified, restored, pruned, backed up."""
        with tempfile.TemporaryDirectory(dir=self.root) as folder:
            self._everything(chance, self.made.copied(Path(folder)))

    def _everything(self, chance: random.Random, copied: Specimen) -> None:
        kit = copied.kit
        lies = chance.random() < 0.5
        if lies:
            key, data = self.lying_point(chance)
        else:
            key, data = self.bytes_of(chance, chance.choice([k for k in self.made.kinds if k != "own slot"]))
        copied.put(key, data)
        kit.reopen()
        for step in (self._look, self._verify, self._plan, self._back_up):
            with contextlib.suppress(VmbackupError):
                step(copied)
        for point in kit.points():
            if lies and point.key == key:  # its writer may say what it likes of its guest, but no reader fails
                with contextlib.suppress(VmbackupError):
                    contents(kit, point)
                continue
            with contextlib.suppress(DamageError):
                assert contents(kit, point) == kit.kept[point.id], f"wrong bytes of {point.id}"

    @staticmethod
    def _look(copied: Specimen) -> None:
        json.dumps(document(summaries(copied.kit.repository.survey())))

    @staticmethod
    def _verify(copied: Specimen) -> None:
        copied.kit.verify()

    @staticmethod
    def _plan(copied: Specimen) -> None:
        prune(copied.kit.repository, PruneOptions(dry_run=True))

    @staticmethod
    def _back_up(copied: Specimen) -> None:
        copied.kit.disk().write(0, b"a change")
        copied.kit.backup()


def _aad(slots: int) -> bytes:
    return frames.preamble(b"PACK", 1) + (slots % (1 << 32)).to_bytes(4, "big")


def _group(point: Point) -> dict[str, object]:
    """What a point says that was made with others."""
    member = {"name": "guest", "uuid": "0", "session": point.session.hex()}
    failed = {"name": "other", "uuid": None, "error": "no"}
    return {"id": bytes(8).hex(), "job": "crm", "instant": True, "members": [member], "failed": [failed]}
