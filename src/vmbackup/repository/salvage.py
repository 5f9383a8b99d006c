"""Saving the chunks of a session that was killed: its packs become a partial."""

from vmbackup.errors import DamageError
from vmbackup.repository import frames, packs
from vmbackup.repository.catalog import fetch
from vmbackup.repository.crypto import DATA, META
from vmbackup.repository.index import IndexWriter
from vmbackup.repository.layout import Lineage, SessionRef
from vmbackup.repository.moves import PIN_FIELD
from vmbackup.repository.packs import FOOTER, Birth, read_footer
from vmbackup.repository.repository import Repository
from vmbackup.repository.session import create_point, drop_pin, put_partial, read_pin
from vmbackup.storage_backends import ObjectMissing


def salvage(repository: Repository, lineage: Lineage, session: bytes, host: str) -> bool:
    """Ends a dead session of this host: as a partial where it stored chunks (True), else as "aborted".

    The caller knows that the writer is dead. If it is wrong, that run fails at its commit and nothing is lost.
    """
    store = repository.store
    try:
        pin = read_pin(repository, lineage, session, store.get(lineage.pin(session)))
    except ObjectMissing:
        return False
    if repository.exists(lineage.point(session)):
        drop_pin(repository, lineage, session)  # it was killed between commit and clean-up
        return False
    own = Birth(session, lineage.id, pin["epoch"], pin["id_key"], bytes.fromhex(pin["envelope"]))
    first = 1 + max((_number(e.key) for e in store.list(lineage.prefix("index", session))), default=-1)
    index = IndexWriter(
        repository.group(lineage.group), own, lambda n, data: store.put(lineage.index(session, n), data), first
    )
    found = False
    for kind in () if PIN_FIELD in pin else (DATA, META):  # what a repacking copied lies in the store already
        for entry in store.list(lineage.prefix(kind, session)):
            found |= _add(repository, lineage, session, kind, entry.key, entry.size, index)
    if found:
        number, digest = index.finish()
        ref = SessionRef(0, session, lineage.id, number, digest)
        put_partial(repository, lineage, session, ref, host, own.epoch, own.envelope)
    else:
        create_point(repository, lineage, session, frames.preamble(b"ABRT"))
    drop_pin(repository, lineage, session)
    return found


def _number(key: str) -> int:
    return int(key.rsplit("-", 1)[1])


def _add(
    repository: Repository, lineage: Lineage, session: bytes, kind: str, key: str, size: int, index: IndexWriter
) -> bool:
    """Indexes one pack, if it is whole and of this session."""
    store, group, number = repository.store, repository.group(lineage.group), _number(key)
    try:
        length, slots = read_footer(fetch(store, key, max(0, size - FOOTER.size), FOOTER.size), key)
        sealed = fetch(store, key, max(0, size - FOOTER.size - length), length)
        key_number = frames.check_preamble(fetch(store, key, 0, frames.PREAMBLE.size), b"PACK", key)
        header_key = packs.header_key(kind, group, key_number, session, number)
        header = packs.open_header(sealed, header_key, key_number, slots, key)
    except DamageError:
        return False  # a pack that cannot be read is no chunk to find again
    index.add(kind, number, size, slots, sealed, header.births, header.ids())
    return True
