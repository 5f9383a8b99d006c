"""What a collector is about to delete: lists that a writer reads (docs/repository-format.md, section 11)."""

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from vmbackup.errors import DamageError
from vmbackup.repository import frames
from vmbackup.repository.crypto import DATA, META
from vmbackup.repository.layout import Lineage
from vmbackup.storage_backends import ObjectMissing, Store

INDEX, TABLE = "index", "points"  # of the commits, tables of moves alone
# Objects of one list: 37 MiB. What is more is left to the next cycle: any part of what may go is safe to take.
MOST = 1 << 20
_KINDS = {DATA: 1, META: 2, INDEX: 3, TABLE: 4}
_NAMES = {number: kind for kind, number in _KINDS.items()}
_COUNT = struct.Struct(">I")
_ENTRY = struct.Struct(">B16s16sI")
_BYTES = MOST * _ENTRY.size + 64
_HINT = "delete it while no prune runs: no data is lost by that"


class ObjectName(NamedTuple):
    """A pack, an index object or a table of moves (number 0): `kind` is the folder."""

    kind: str
    lineage: bytes
    session: bytes
    number: int

    def place(self, group: str) -> Lineage:
        """The history that it lies in."""
        return Lineage(group, self.lineage)

    def key(self, group: str) -> str:
        """Its key in the store."""
        if self.kind == TABLE:
            return self.place(group).point(self.session)
        return f"{self.place(group).prefix(self.kind, self.session)}{self.number}"

    @classmethod
    def parse(cls, key: str) -> "ObjectName":
        """Of one of our keys below data/, meta/ or index/."""
        kind, _, lineage, name = key.split("/")
        session, _, number = name.partition("-")
        return cls(kind, bytes.fromhex(lineage), bytes.fromhex(session), int(number))


def put(store: Store, group: str, names: Iterable[ObjectName]) -> str:
    """A list of at most MOST names under a new id; gives its key."""
    entries = [_ENTRY.pack(_KINDS[n.kind], n.lineage, n.session, n.number) for n in sorted(names)]
    key = f"condemned/{group}/{os.urandom(16).hex()}"
    store.put(key, frames.preamble(b"COND") + _COUNT.pack(len(entries)) + b"".join(entries))
    return key


def read(store: Store, group: str) -> dict[str, set[ObjectName]]:
    """All lists of a group. Raises DamageError for one that cannot be read: nothing can be relied on then."""
    found: dict[str, set[ObjectName]] = {}
    for entry in store.list(f"condemned/{group}/"):
        try:
            if entry.size > _BYTES:
                raise DamageError(f"{entry.key} is too large", object_key=entry.key)
            found[entry.key] = decode(store.get(entry.key), entry.key)
        except ObjectMissing:
            continue  # dropped meanwhile: what it named is gone, or stays
        except DamageError as error:
            raise DamageError(error.message, _HINT, object_key=entry.key) from error
    return found


def astray(lists: Mapping[str, set[ObjectName]], needed: Callable[[ObjectName], bool]) -> Iterator[str]:
    """A sentence for each list that names what restore points need: no collector leaves such a one.

    None is dropped by its age: a collector that sleeps between its last look and its deletes relies on its list.
    """
    for key, names in sorted(lists.items()):
        if count := sum(map(needed, names)):
            yield (
                f"{key} names what restore points need, {count} in all: each backup reads again what lies in them; "
                "unless a prune runs, delete that list, and find out who put it there"
            )


def decode(data: bytes, key: str) -> set[ObjectName]:
    """The objects that a list names. Raises DamageError, RepositoryError (newer)."""
    frames.check_preamble(data, b"COND", key)
    start = frames.PREAMBLE.size + _COUNT.size
    body = data[start:]
    try:
        (count,) = _COUNT.unpack_from(data, frames.PREAMBLE.size)
        names = {ObjectName(_NAMES[kind], *rest) for kind, *rest in _ENTRY.iter_unpack(body)}
    except (struct.error, KeyError) as error:
        raise DamageError(f"{key} is malformed", _HINT, object_key=key) from error
    if len(body) != count * _ENTRY.size:
        raise DamageError(f"{key} is cut", _HINT, object_key=key)
    return names
