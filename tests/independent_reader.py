"""Reads a repository of vmbackup with none of its code: written from docs/repository-format.md alone.

    python3 independent_reader.py FOLDER SECRET_FILE [POINT DIR]

The secret is the passphrase or the recovery key. Lists the points, or writes the raw disks and documents of one to DIR.
Needs Python 3.11, blake3, cryptography 50 and zstandard. Numbers in docstrings: its sections.
"""

import base64
import contextlib
import io
import json
import re
import struct
import sys
from collections import namedtuple
from functools import cached_property, lru_cache
from pathlib import Path

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

MIB, unhex = 1 << 20, bytes.fromhex
CHUNK, NODE, FOLDERS = 1, 2, {1: "data", 2: "meta"}  # kinds of slots and of the packs that they lie in
POINT, PARTIAL, MOVES, COPY = 1, 2, 3, 4
SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
FILE_NAME = re.compile(r"(?!\.{1,2}$)[^/\0-\x1f\x7f]{1,253}")

Commit = namedtuple("Commit", "kind group lineage session writer info table moves aad private original told")
Source = namedtuple("Source", "session lineage root digest")  # of a session table
Row = namedtuple("Row", "part part_digest offset length slots digest")
Record = namedtuple("Record", "id checksum offset stored plain compression zero birth pack slot")
Place = namedtuple("Place", "kind source pack slot")
Child = namedtuple("Child", "chunks session pack slot id")


class Unreadable(Exception):
    """Of a newer version, forged, or not what it should be."""


BROKEN = (Unreadable, InvalidTag, InvalidSignature, OSError, LookupError, ValueError, struct.error, zstandard.ZstdError)


def need(condition, what):
    if not condition:
        raise Unreadable(what)


def h(data, key=None):
    return (blake3(data, key=key) if key else blake3(data)).digest()


def unseal(key, nonce, aad, sealed):
    return AESGCM(key).decrypt(nonce if isinstance(nonce, bytes) else nonce.to_bytes(12, "big"), sealed, aad)


def hpke_open(private, info, sealed):
    lattice, curve = MLKEM768PrivateKey.from_seed_bytes(private[:64]), X25519PrivateKey.from_private_bytes(private[64:])
    return SUITE.decrypt(sealed, hpke.MLKEM768X25519PrivateKey(lattice, curve), info)


def unzstd(frame, most):
    need(zstandard.get_frame_parameters(frame).content_size <= most, "a frame is too large")
    return zstandard.ZstdDecompressor().decompress(frame, max_output_size=most)


def recovery_bytes(text):
    """5. The 32 bytes of a recovery key, None if it is none. The file that `init` makes has lines of comment."""
    letters = re.sub(r"(?m)^#.*$|[-\s]", "", text).upper()
    raw = base64.b32decode(letters) if re.fullmatch("[A-Z2-7]{56}", letters) else b""
    return raw[:32] if raw and h(raw[:32])[:3] == raw[32:] else None


class Fields(io.BytesIO):
    """1. Big-endian fields, one after the other; what is cut raises struct.error."""

    def many(self, layout):
        return struct.unpack(">" + layout, self.read(struct.calcsize(">" + layout)))

    def sized(self, layout="I", most=64 * MIB):
        (length,) = self.many(layout)
        need(length <= most, "a length is out of bounds")
        return self.many(f"{length}s")[0]

    def preamble(self, kind):
        *found, version, id_key = self.many("8s4sHH")
        need(found == [b"vmbackup", kind] and version == 1, f"no {kind.decode()}, or written by a newer version")
        return id_key


class Reader:
    """A repository in a folder, opened with the passphrase or the recovery key."""

    def __init__(self, folder, secret):
        self.folder = folder
        self._open_slot(secret)
        self._read_config()
        self.id_keys = self._read_keys()
        self.writers = {w["writer"]: w for _, w in self.signed("writers", b"WRTR")}
        self.stands = {w: self._what_stands(w) for w in self.writers}

    def names(self, below):
        return sorted(p.relative_to(self.folder).as_posix() for p in (self.folder / below).rglob("*") if p.is_file())

    def get(self, name, offset=0, length=-1):
        with (self.folder / name).open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def derive(self, key, info, session=b"", number=0):
        """3. A derived key; where there is a session, the number follows it."""
        text = b"vmbackup/1/" + info.encode() + (b"\0" + session + struct.pack(">I", number) if session else b"")
        return HKDF(hashes.SHA256(), 32, self.realm, text).derive(key)

    def _open_slot(self, secret):
        """5. Key slots."""
        recovery = recovery_bytes(secret)
        for name in self.names("keys"):
            with contextlib.suppress(*BROKEN):
                data = self.get(name)
                (fields := Fields(data[:-32])).preamble(b"KEYS")
                slot = json.loads(fields.sized(most=65536))
                need(data[-32:] == h(data[:-32]), "it is damaged")
                need((slot["kind"] == "recovery") == bool(recovery), "it is for another kind of secret")
                kdf, sealed = slot["kdf"], unhex(slot.pop("sealed"))
                costs = {"iterations": kdf["iterations"], "lanes": kdf["lanes"], "memory_cost": kdf["memory_kib"]}
                need(all(1 <= n <= most for n, most in zip(costs.values(), (64, 16, MIB), strict=True)), "its costs")
                plain = recovery or secret.removesuffix("\n").encode()
                key = Argon2id(salt=unhex(kdf["salt"]), length=32, **costs).derive(plain)
                aad = json.dumps(slot, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
                bundle = json.loads(unseal(key, unhex(slot["nonce"]), aad, sealed))
                self.realm, self.slot = unhex(bundle["realm"]), slot["slot"]
                self.verify = Ed25519PublicKey.from_public_bytes(unhex(bundle["signing_public"]))
                self.privates = {e["number"]: unhex(e["private_key"]) for e in bundle["epochs"]}
                return
        raise Unreadable("no key slot opens with this secret")

    def signed(self, below, kind):
        """4. Names and contents of documents that the realm signed; anything else counts for nothing."""
        for name in self.names(below):
            data = self.get(name)
            with contextlib.suppress(InvalidSignature):
                self.verify.verify(data[-64:], b"vmbackup signed document\0" + data[:-64])
                if data[8:12] == kind:
                    (fields := Fields(data[:-64])).preamble(kind)
                    yield name, json.loads(fields.sized(most=16 * MIB))

    def _read_config(self):
        found = [*self.signed("config", b"CONF"), *self.signed("config.copy", b"CONF")]
        known = {c["version"]: c for name, c in found if name.endswith(f"/{c['version']}")}
        here = known[min(known)]["repository"]
        self.config = known[max(n for n, c in known.items() if c["repository"] == here)]
        self.repository = unhex(here)
        need(not self.config["features"]["refuse"], "it has features of a newer version")
        need(self.slot in self.config.get("slots", [self.slot]), "this key slot was removed")

    def _read_keys(self):
        found, documents = {}, sorted((d["group"], d["number"], d) for _, d in self.signed("groups", b"GRUP"))
        for group, _, d in documents:  # of several of a group the last one holds
            if d["epoch"] in self.privates:
                info = b"vmbackup/1/group\0" + self.realm + struct.pack(">I", d["epoch"]) + group.encode()
                keys = json.loads(hpke_open(self.privates[d["epoch"]], info, unhex(d["sealed"])))
                found |= {(group, k["number"]): unhex(k["key"]) for k in keys["id_keys"]}
        return found

    def _what_stands(self, writer):
        """4. Lineage and session of what stands of a revoked writer; None: it is not revoked."""
        told = {r["digest"] for r in self.config.get("revoked", ()) if r["writer"] == writer}
        lists, here = {}, self.repository.hex()
        for name, d in self.signed("writers", b"WRVK"):
            if d["writer"] == writer and d.get("repository", here) == here:
                texts = d["stands"].items()
                lists[h(self.get(name)).hex()] = {x + s[i : i + 32] for x, s in texts for i in range(0, len(s), 32)}
        holds = not told or told & set(lists)
        return set.intersection(*lists.values()) if lists and holds else None if holds else set()

    def _check_signer(self, writer, group, role, text, data):
        w = self.writers[writer]
        need(w["role"] == "reader" or (w["role"], w["group"]) == (role, group), "who signed it may not")
        Ed25519PublicKey.from_public_bytes(unhex(w["public_key"])).verify(data[-64:], text + data[:-64])

    def _commit(self, data):
        """9. What creates a session's place below points/."""
        fields = Fields(data[:-64])
        id_key, (kind,), group = fields.preamble(b"POIN"), fields.many("B"), fields.sized("B").decode()
        lineage, session, writer = fields.many("16s16s8s")
        aad, role = data[: fields.tell()], "prune" if kind == MOVES else "backup"
        self._check_signer(writer.hex(), group, role, b"vmbackup point\0" + self.realm, data)
        sealed, private = fields.sized(), fields.sized()
        original = self._commit(fields.sized()) if kind == COPY else None
        public = Fields(unseal(self.derive(self.id_keys[group, id_key], "point", session), 0, aad, sealed))
        info, rows = json.loads(public.sized()), [public.many("I16s16sI32sI") for _ in range(*public.many("I"))]
        need(kind in (POINT, PARTIAL, MOVES, COPY) and not info["features"], "it has features of a newer version")
        moves = [public.many("B3s7I") for _ in range(*public.many("I"))] if kind == MOVES else []
        table = {number: Source(*source) for number, *source, _uses in rows}
        need(not original or original[2:4] == (lineage, unhex(info["original"]["session"])), "no copy of what it holds")
        told = original.told if original else info  # what a reader is told of a copy is its original's
        return Commit(kind, group, lineage, session, writer.hex(), info, table, moves, aad, private, original, told)

    def commits(self, below="points"):
        """Those that count: of an enrolled writer, not quarantined, not forgotten."""
        for name in self.names(below):
            data = self.get(name)
            try:
                c = self._commit(data)
                need(name == f"points/{c.group}/{c.lineage.hex()}/{c.session.hex()}", "it lies in the wrong place")
            except BROKEN as problem:
                if data[8:12] != b"ABRT":
                    print(f"{name}: {problem!r}", file=sys.stderr)
                continue
            stands, gone = self.stands[c.writer], {(c.group, c.lineage + c.session), (c.group, c.session)}
            if not gone & self.forgotten and (stands is None or (c.lineage + c.session).hex() in stands):
                yield c

    @cached_property
    def forgotten(self):
        """11. By group: lineage and session, or only a session, which counts in all lineages."""
        found, text = set(), b"vmbackup tombstone\0" + self.realm + self.repository
        for name in self.names("trash") + self.names("dead"):
            with contextlib.suppress(*BROKEN):
                data, trash = self.get(name), name.startswith("trash")
                (fields := Fields(data[:-72])).preamble(b"TRSH" if trash else b"DEAD")
                signer, group = data[-72:-64].hex(), fields.sized("B").decode()
                self._check_signer(signer, group, "prune", text, data)
                need(self.stands[signer] is None, "who signed it is revoked")
                count = 1 if trash else fields.many("I")[0]
                found |= {(group, *fields.many("32s" if trash else "16s")) for _ in range(count)}
        return found

    def points(self):
        """The restore points, newest first, by their ids (2): the time without fractions, and digits of the session."""
        found, ids = {(c.told["seq"], c.session): c for c in self.commits() if c.kind in (POINT, COPY)}, {}
        for _, c in sorted(found.items(), reverse=True):
            ids[re.sub(r"[.].*|[+]00:00$|Z$|[-:]", "", c.told["time"]) + f"Z-{c.session[6:10].hex()}"] = c
        return ids

    def documents(self, point):
        """9. The private part, of a copy its original's."""
        of = point.original or point
        secret = self._secret(of.group, of.session, of.info["epoch"], unhex(of.info["envelope"]))
        text = unzstd(unseal(self.derive(secret, "private", of.session), 0, of.aad, of.private), 64 * MIB)
        return {d["name"]: unhex(d["data"]).ljust(d.get("length", 0), b"\0") for d in json.loads(text)["documents"]}

    @lru_cache(maxsize=1024)
    def _secret(self, group, session, epoch, envelope):
        """3. A session's secret, out of its envelope."""
        info = b"vmbackup/1/envelope\0" + self.realm + struct.pack(">I", epoch) + session + group.encode()
        return hpke_open(self.privates[epoch], info, envelope)

    def _indexed(self, group, source, number, digest):
        """7. An index object, under its number or where it was made again."""
        stem = f"index/{group}/{source.lineage.hex()}/{source.session.hex()}-"
        for name in (f"{stem}{number}", *(n for n in self.names(stem.rpartition("/")[0]) if n.startswith(stem))):
            with contextlib.suppress(*BROKEN):
                if h(data := self.get(name)) == digest:
                    return data
        raise Unreadable(f"{stem}{number} is missing or damaged")

    @lru_cache(maxsize=64)
    def _index(self, group, source):
        """7. The number of the id key and, by kind and number, what the root tells of each pack."""
        data, packs = self._indexed(group, source, source.root, source.digest), {}
        id_key = Fields(data).preamble(b"IDXR")
        key = self.derive(self.id_keys[group, id_key], "index root", source.session, source.root)
        fields = Fields(unseal(key, 0, data[:16], data[16:]))
        _births = [(fields.many("16s16sIH"), fields.sized("H")) for _ in range(*fields.many("I"))]
        first, count = fields.many("II")
        parts = {number: fields.many("Q32s")[1] for number in range(first, first + count)}
        for _ in range(*fields.many("I")):
            kind, _, number, _, part, *rest = fields.many("B3sIQIIII32s")
            packs[kind, number] = Row(part, parts[part], *rest)
        return id_key, packs

    def _pack(self, group, place):
        return f"{FOLDERS[place.kind]}/{group}/{place.source.lineage.hex()}/{place.source.session.hex()}-{place.pack}"

    @lru_cache(maxsize=256)
    def _header(self, group, place):
        """6. What lies in a pack, by the index or, where that is lost, by the pack itself."""
        number, packs = self._index(group, place.source)
        row, id_key = packs[place.kind, place.pack], self.id_keys[group, number]
        try:
            sealed = self._indexed(group, place.source, row.part, row.part_digest)[row.offset :][: row.length]
        except BROKEN:
            sealed = self.get(self._pack(group, place))[-16 - row.length : -16]
        need(h(sealed) == row.digest, "the header of a pack is damaged")
        key = self.derive(id_key, f"header of {FOLDERS[place.kind]}", place.source.session, place.pack)
        fields = Fields(unseal(key, 0, struct.pack(">8s4sHHI", b"vmbackup", b"PACK", 1, number, row.slots), sealed))
        count, _, slots = fields.many("HHI")
        births = [(*fields.many("16s16sIH"), fields.sized("H")) for _ in range(count)]
        records = [Record(*fields.many("32s16sIIIBBHII")) for _ in range(slots)]
        need(all(r.birth < count and r.plain <= 16 * MIB for r in records), "the header of a pack is wrong")
        return [r._replace(birth=births[r.birth]) for r in records]

    def _slot(self, group, place, wanted):
        """6. The chunk or map node at this place; its id must be the one that is wanted."""
        r = self._header(group, place._replace(slot=0))[place.slot]
        need(r.id == wanted, "another slot lies there")
        session, _, epoch, number, envelope = r.birth
        id_key = self.id_keys[group, number]
        source = self._secret(group, session, epoch, envelope) if place.kind == CHUNK else id_key
        key = self.derive(source, FOLDERS[place.kind], session, r.pack)
        aad = struct.pack(">B16sB32sIB", 1, self.realm, place.kind, r.id, r.plain, r.compression)
        plain = unseal(key, r.slot, aad, self.get(self._pack(group, place), r.offset, r.stored))
        plain = unzstd(plain, r.plain) if r.compression else plain
        need(len(plain) == r.plain and h(plain, self.derive(id_key, "chunk id")) == wanted, "the id is another")
        return plain

    def read(self, group, place, wanted=None):
        """A slot, at its place or where it was moved to; its id is `wanted`, else what the old place's header tells."""
        wanted, problem = wanted or self._header(group, place._replace(slot=0))[place.slot].id, None
        for _ in range(33):
            try:
                return self._slot(group, place, wanted)
            except BROKEN as found:
                problem = problem or found
            moves = self._moves(group, place.source.lineage).get(place[:3], ())
            hits = [(place.slot - first, to) for first, slots, to in moves if first <= place.slot < first + slots]
            if not hits:
                break
            place = hits[0][1]._replace(slot=hits[0][1].slot + hits[0][0])
        raise problem

    @lru_cache(maxsize=64)
    def _moves(self, group, lineage):
        """9. By kind, session and pack: first slot, slots and first new place, of newer tables first."""
        found, tables = {}, [c for c in self.commits(f"points/{group}/{lineage.hex()}") if c.kind == MOVES]
        for c in sorted(tables, key=lambda c: c.session, reverse=True):
            for kind, _, old, pack, first, slots, new, *to in c.moves:
                move = first, slots, Place(kind, c.table[new], *to)
                found.setdefault((kind, c.table[old], pack), []).append(move)
        return found

    def runs(self, point, entry, level, first, chunk_size):
        """8. First chunk, chunks and first place of what is not zero below this entry of a map node."""
        place = Place(NODE, point.table[entry.session], entry.pack, entry.slot)
        fields = Fields(self.read(point.group, place, entry.id))
        found, _, size, begins, chunks, sessions, entries = fields.many("B3sIQQII")
        need((found, size, begins, chunks) == (level, chunk_size, first, entry.chunks) and level < 9, "a map is wrong")
        fields.many(f"{sessions}I")
        for _ in range(entries):
            child = Child(*fields.many("QIII32s")) if level else Child(*fields.many("IIII"), b"")
            need(child.chunks, "an entry of no chunks")
            if child.session and level:
                yield from self.runs(point, child, level - 1, first, chunk_size)
            elif child.session:
                yield first, child.chunks, Place(CHUNK, point.table[child.session], child.pack, child.slot)
            first += child.chunks
        need(first == begins + chunks, "a map has a gap")

    def disks(self, point):
        """By target, of the files that the guest is started from by name: what is told of each, the root of its map."""
        disks = {d["name"]: d for d in point.told["disks"]}
        told = {f["path"]: f | {"virtual_size": f["size"]} for f in (point.told.get("files") or {"saved": ()})["saved"]}
        mine = here["saved"] if (here := point.info.get("files") or {}).get("session") == point.session.hex() else ()
        files = {Path(f["path"]).name: (told[f["path"]], f["root"]) for f in mine}
        return files | {disks[d["name"]]["target"]: (disks[d["name"]], d["root"]) for d in point.info["disks"]}

    def write_disk(self, point, disk, root, path):
        """A new, sparse raw file."""
        size, chunk = disk["virtual_size"], disk["chunk_size"]
        need(root["chunks"] == -(-size // chunk), "a map of another size")
        entry = Child(root["chunks"], root["session"], root["pack"], root["slot"], unhex(root["id"]))
        with path.open("xb") as file:
            file.truncate(size)
            for first, chunks, place in self.runs(point, entry, root["level"], 0, chunk) if entry.session else ():
                file.seek(first * chunk)
                for i in range(chunks):
                    plain = self.read(point.group, place._replace(slot=place.slot + i))
                    need(len(plain) == chunk, "a chunk of another size")
                    file.write(plain[: size - (first + i) * chunk])

    def restore(self, point, folder):
        disks, documents = self.disks(point), self.documents(point)
        need(all(map(FILE_NAME.fullmatch, [*disks, *documents])), "a name is none for a file")
        for target, (disk, root) in disks.items():
            self.write_disk(point, disk, root, folder / f"{target}.raw")
        for name, data in documents.items():
            (folder / name).write_bytes(data)


def main(folder, secret_file, wanted=None, to="."):  # noqa: RET503
    points = (reader := Reader(Path(folder), Path(secret_file).read_text())).points()
    if not wanted:
        return print(*(f"{name} {point.told['domain']['name']!a}" for name, point in points.items()), sep="\n")
    Path(to).mkdir(parents=True, exist_ok=True)
    reader.restore(points[wanted], Path(to))


if __name__ == "__main__":
    main(*sys.argv[1:])
