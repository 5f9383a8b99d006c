"""What a revoked key made before stands; what it makes since is told, kept and never used."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.unit.engine.kit import RamKit
from tests.unit.engine.test_writers import as_host, change, enrolled, kit
from vmbackup.errors import AccessError, DamageError, NotFoundError, UsageError
from vmbackup.repository import Repository, frames, tables, tombstones
from vmbackup.repository.collect import PruneOptions, prune
from vmbackup.repository.crypto import DATA
from vmbackup.repository.enrolling import new_writer, revoke
from vmbackup.repository.enrolments import revocation_key
from vmbackup.repository.moves import Move, encode
from vmbackup.repository.points import MOVES, encode_table
from vmbackup.repository.quarantine import quarantined
from vmbackup.repository.resolve import resolve
from vmbackup.repository.session import Session
from vmbackup.repository.trust import Trust

__all__ = ["kit"]


@pytest.fixture
def stolen(kit: RamKit) -> RamKit:
    """The key of host1 was revoked with one point of its own; then, with a copy of it, another was made."""
    keys = enrolled(kit, "host1")
    as_host(kit, keys)
    change(kit, 2)
    kit.backup()
    thief = Repository.open(kit.store, keys, Trust(None))
    kit.reopen()
    assert revoke(kit.repository, "host1").standing == 1
    good, kit.kept = kit.kept, {}
    change(kit, 3)
    kit.repository = thief
    # The thief runs a program that asks nobody whether the key is good.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Repository, "check_enrolled", lambda _: None)
        patch.setattr(Repository, "recheck", lambda _: None)
        kit.backup()
    kit.reopen()
    kit.kept = good
    return kit


def test_what_it_made_before_stands_and_what_it_made_since_does_not(stolen: RamKit) -> None:
    stolen.check_all()
    (found,) = quarantined(stolen.repository, stolen.repository.read_points())
    assert (found.domain, found.writer) == ("guest", "host1")
    assert "not seen when that key was revoked" in found.problem
    assert [q.id for q in stolen.verify().quarantined] == [found.id]
    with pytest.raises(AccessError, match="in quarantine"):
        resolve(stolen.repository.survey(), found.id)
    assert resolve(stolen.repository.survey(), "guest@latest").id in stolen.kept


def test_nothing_is_built_on_what_is_in_quarantine(stolen: RamKit) -> None:
    """The next point's parent is the newest that stands, and it restores as the guest was."""
    change(stolen, 4)
    newest = stolen.points()[0]
    stolen.backup()
    assert stolen.points()[0].parent == newest.session
    stolen.reopen()
    stolen.check_all()


def test_prune_keeps_what_is_in_quarantine_until_it_is_forgotten(stolen: RamKit) -> None:
    (doubtful,) = stolen.repository.read_points().quarantined
    prune(stolen.repository, PruneOptions())
    own = [e.key for e in stolen.store.list(doubtful.lineage.prefix("data", doubtful.session))]
    assert own
    tombstones.forget(stolen.repository, doubtful.lineage, doubtful.session)
    prune(stolen.repository, PruneOptions())
    assert not [e.key for e in stolen.store.list(doubtful.lineage.prefix("data", doubtful.session))]
    assert stolen.repository.read_points().quarantined == []
    stolen.reopen()
    stolen.check_all()


def test_the_revoked_host_is_told(kit: RamKit) -> None:
    """At once, and also in the middle of a run: at the latest before it commits."""
    keys = enrolled(kit, "host1")
    as_host(kit, keys)
    host: Any = kit.host
    reader = Repository.open(kit.store, keys, Trust(None))
    kit.reopen()
    operator, kit.repository = kit.repository, reader
    host.on_seal = lambda: revoke(operator, "host1")
    change(kit, 2)
    with pytest.raises(AccessError, match="was revoked"):
        kit.backup()
    host.on_seal = lambda: None
    as_host(kit, keys)
    with pytest.raises(AccessError, match="was revoked"):
        kit.backup()
    kit.reopen()
    assert (len(kit.points()), kit.repository.read_points().quarantined) == (1, [])


def test_what_a_pruner_forgot_stays_forgotten_and_what_it_forgets_since_does_not(kit: RamKit) -> None:
    """Its trash and dead lists count no more, but the reader has taken over what they said when it was revoked."""
    for seed in (2, 3, 4):
        change(kit, seed)
        kit.backup()
    keys = enrolled(kit, "pruner", role="prune")
    thief = Repository.open(kit.store, keys, Trust(None))
    last, *rest, first, oldest = reversed(kit.points())
    tombstones.forget(thief, oldest.lineage, oldest.session)
    tombstones.put_dead(thief, "default", [first.session])
    assert revoke(kit.repository, "pruner").forgotten == 2
    with pytest.raises(AccessError, match="was revoked"):
        tombstones.forget(kit_host(kit, keys), last.lineage, last.session)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Repository, "check_enrolled", lambda _: None)
        tombstones.forget(thief, last.lineage, last.session)
        tombstones.put_dead(thief, "default", [last.session])
    kit.reopen()
    assert [p.session for p in kit.points()] == [p.session for p in (*reversed(rest), last)]
    assert prune(kit.repository, PruneOptions()).points > 0
    kit.reopen()
    for point in kit.points():
        assert kit.restored(point) == kit.kept[point.id]


def kit_host(kit: RamKit, keys: Any) -> Repository:
    return Repository.open(kit.store, keys, Trust(None))


def test_a_revocation_that_the_store_hides_is_noticed(stolen: RamKit) -> None:
    """The config lists it: nothing of that writer counts then, and nothing is collected."""
    writer = next(w for w in stolen.repository.writers().values() if w.name == "host1")
    data = stolen.store.get(revocation_key(writer.id))
    (doubtful,) = stolen.repository.read_points().quarantined
    document = frames.parse(data[20:-64], "revocation")
    document["stands"][doubtful.lineage.id.hex()] += doubtful.session.hex()
    another = frames.sign_document(b"WRVK", document, stolen.repository.reader.signing)  # of a replica, it may be
    for put in (None, data[:-1] + bytes((data[-1] ^ 1,)), another):
        stolen.store.delete(revocation_key(writer.id))
        if put:
            stolen.store.put(revocation_key(writer.id), put)
        stolen.reopen()
        found = stolen.repository.read_points()
        assert (len(found.points), len(found.quarantined)) == (1, 2)
        assert revocation_key(writer.id) in {damage.object for damage in stolen.verify(None).damaged}
        with pytest.raises(DamageError, match="nothing was collected"):
            prune(stolen.repository, PruneOptions())


def test_with_the_config_of_before_the_host_notices(stolen: RamKit) -> None:
    writer = next(w for w in stolen.repository.writers().values() if w.name == "host1")
    stolen.store.delete(revocation_key(writer.id))
    for folder in ("config", "config.copy"):
        stolen.store.delete(f"{folder}/{stolen.repository.config.version}")
    with pytest.raises(DamageError, match="rolled back"):
        stolen.reopen()


def test_a_revocation_that_nobody_signed_counts_for_nothing(kit: RamKit) -> None:
    """Who can write to the store cannot take a host's key away."""
    keys = enrolled(kit, "host1")
    other = RamKit(kit.root / "other", {"vda": 1 << 16})
    stranger = enrolled(other, "host1")
    revoke(other.repository, "host1")
    foreign = other.store.get(revocation_key(stranger.writer.id))
    kit.store.put(revocation_key(keys.writer.id), foreign)
    as_host(kit, keys)
    change(kit, 2)
    kit.backup()
    kit.reopen()
    assert len(kit.points()) == 2
    found = kit.verify(None)
    assert (found.damaged, [g.object for g in found.garbage]) == ((), [revocation_key(keys.writer.id)])


def test_revoking_again_ends_what_was_begun(kit: RamKit, monkeypatch: pytest.MonkeyPatch) -> None:
    """A revocation that was cut off before the config listed it counts already, and is listed by the next call."""
    keys = enrolled(kit, "host1")
    with monkeypatch.context() as patch:
        patch.setattr(Repository, "change_config", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            revoke(kit.repository, "host1")
    kit.reopen()
    assert kit.repository.writers()[keys.writer.id].revoked
    revoke(kit.repository, "host1")
    kit.reopen()
    assert set(kit.repository.config.revoked) == {keys.writer.id}
    assert kit.verify(None).damaged == ()


def test_a_host_gets_another_key_under_its_name(kit: RamKit) -> None:
    enrolled(kit, "host1")
    revoke(kit.repository, "host1")
    second = enrolled(kit, "host1")
    with pytest.raises(UsageError, match="already"):
        new_writer(kit.repository, "host1", "default", "backup")
    as_host(kit, second)
    change(kit, 2)
    kit.backup()
    kit.reopen()
    kit.check_all()
    revoke(kit.repository, "host1")
    assert kit.repository.writers()[second.writer.id].revoked


def test_who_cannot_be_revoked(kit: RamKit) -> None:
    with pytest.raises(NotFoundError):
        revoke(kit.repository, "nobody")
    with pytest.raises(UsageError, match="passphrase"):
        revoke(kit.repository, "reader")
    as_host(kit, enrolled(kit, "host1"))
    with pytest.raises(AccessError):
        revoke(kit.repository, "host1")


def test_what_a_pruner_moved_holds_and_what_it_moves_since_does_not(kit: RamKit) -> None:
    """Its tables of before carry points whose old packs are gone; a later one is in quarantine and leads nowhere."""
    for seed in (2, 3):
        kit.disk().write(0, random.Random(seed).randbytes(8 * 1024))
        kit.backup()
    keys = enrolled(kit, "pruner", role="prune")
    pruner = Repository.open(kit.store, keys, Trust(None))
    oldest = kit.points()[-1]
    tombstones.forget(pruner, oldest.lineage, oldest.session)
    del kit.kept[oldest.id]
    prune(pruner, PruneOptions(repack_below=1.0))
    assert len(kit.repository.read_points().moves) == 1
    revoke(kit.repository, "pruner")
    kit.reopen()
    kit.check_all()
    ref = kit.points()[0].own_ref(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Repository, "check_enrolled", lambda _: None)
        session = Session(pruner, kit.points()[0].lineage, 0, "thief")
        session.pin()
        own = session.close_index()
        table = encode_table({1: ref, 2: own._replace(number=2)}, {})
        session.commit({"features": []}, table + encode([Move(DATA, 1, 0, 0, 1, 2, 0, 0)]), [], MOVES)
    kit.reopen()
    found = kit.repository.read_points()
    assert (len(found.moves), [p.kind for p in found.quarantined]) == (1, [MOVES])
    known = (frozenset(), frozenset(p.session for p in found.quarantined))
    for sessions in known:
        read = tables.read(kit.repository, found.moves[0].lineage, sessions) or []
        assert [table.session for table in read] == [found.moves[0].session]
    kit.check_all()
    prune(kit.repository, PruneOptions(wait=0.0))
    kit.reopen()
    kit.check_all()
