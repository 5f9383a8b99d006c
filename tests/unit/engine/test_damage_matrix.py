"""Each kind of object flipped, cut, deleted, replaced by an older one, exchanged with another: found, named, healed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.engine.damaged import DAMAGES, Specimen, specimen, unreadable
from vmbackup.engine.care.verify import VerifySummary
from vmbackup.errors import DamageError
from vmbackup.repository import Repository
from vmbackup.repository.keys import Secret

KINDS = [
    "config", "config.copy", "keys", "groups", "writers", "sessions", "data", "meta", "index part", "index root",
    "point", "partial", "aborted", "trash", "dead", "condemned", "damage",
]  # fmt: skip

# Nothing tells of these, and nothing is lost by them: the names of tombstones are random, and whether there was one
# nobody knows; a condemned list is unsigned; of an aborted session nothing counts but its type.
UNNAMED = {
    *((kind, how) for kind in ("dead", "condemned", "aborted") for how in ("deleted", "older", "swapped")),
    *((kind, "foreign") for kind in ("condemned", "aborted")),
    *((kind, "deleted") for kind in ("writers", "sessions", "trash", "damage")),
    ("condemned", "flipped"),
    ("aborted", "cut"),
}
# What cannot be read there may be about to be deleted: a backup says how to go on, and does not.
REFUSED = {("condemned", "cut")}
# The packs have the headers too, so a lost part costs nothing but the second copy, which no backup makes again.
STAYS = {"index part"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Specimen:
    return specimen(tmp_path_factory.mktemp("whole"))


def suffering(found: VerifySummary) -> set[str]:
    return {point for damage in found.damaged for point in damage.points}


def test_the_specimen_is_whole(whole: Specimen, tmp_path: Path) -> None:
    """It holds two of each kind at least, and nothing is wrong with it."""
    kit = whole.copied(tmp_path).kit
    kit.reopen()
    assert set(whole.kinds) == {*KINDS, "own slot"}
    assert min(len(keys) for keys in whole.kinds.values()) >= 2
    assert kit.verify().damaged == ()
    assert unreadable(kit) == set()
    assert len(kit.points()) == 3


@pytest.mark.parametrize("harm", DAMAGES, ids=lambda harm: harm.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_found_named_and_healed(
    whole: Specimen, tmp_path: Path, kind: str, harm: Callable[[Specimen, list[str]], list[str]]
) -> None:
    """No wrong byte is ever restored; verify names the object and each point that suffers; the next backup is whole."""
    made = whole.copied(tmp_path)
    kit = made.kit
    harmed = harm(made, made.kinds[kind])
    kit.reopen()
    lost = unreadable(kit)
    found = kit.verify()
    named = {damage.object for damage in found.damaged}
    assert (kind, harm.__name__) in UNNAMED or named >= set(harmed)
    assert suffering(found) >= lost
    if (kind, harm.__name__) in REFUSED:
        with pytest.raises(DamageError) as caught:
            kit.backup()
        assert caught.value.object_key == harmed[0]
        made.put(harmed[0], None)  # as its hint says
    kit.disk().write(1000, b"a change")
    point = kit.backup()
    kit.reopen()
    assert point.id not in unreadable(kit)
    assert kind in STAYS or point.id not in suffering(kit.verify())


@pytest.mark.parametrize("harm", DAMAGES, ids=lambda harm: harm.__name__)
def test_the_slot_of_the_passphrase(
    whole: Specimen, tmp_path: Path, harm: Callable[[Specimen, list[str]], list[str]]
) -> None:
    """It is named to who comes with the passphrase; the recovery key opens, and verify names it too."""
    made = whole.copied(tmp_path)
    kit = made.kit
    kit.reopen()
    harmed = harm(made, made.kinds["own slot"])[-1]
    with pytest.raises(DamageError, match="no other slot opens with this passphrase") as caught:
        kit.reopen()
    assert caught.value.object_key == harmed
    kit.repository = Repository.open(kit.store, Secret.passphrase(kit.recovery_key), kit.trust)
    assert harmed in {damage.object for damage in kit.verify().damaged}
    assert unreadable(kit) == set()


def test_a_config_rolled_back(whole: Specimen, tmp_path: Path) -> None:
    """Taken away with its copy, the newest version is missed by a host that saw it."""
    made = whole.copied(tmp_path)
    made.kit.reopen()
    for folder in ("config", "config.copy"):
        made.put(made.kinds[folder][-1], None)
    with pytest.raises(DamageError, match="config version 2, but this host has seen version 3: the store was rolled"):
        made.kit.reopen()


def test_a_newest_session_rolled_back(whole: Specimen, tmp_path: Path) -> None:
    """Taken away with all that it stored, as by an older copy of the store, it is not told; backups go on whole."""
    made = whole.copied(tmp_path)
    kit = made.kit
    kit.reopen()
    newest = kit.points()[0]
    for key in [key for key in made.store.objects if newest.session.hex() in key]:
        made.put(key, None)
    kit.reopen()
    assert kit.verify().damaged == ()
    assert len(kit.points()) == 2
    kit.disk().write(1000, b"a change")
    point = kit.backup()
    assert point.disks[0].mode == "reread"  # no bitmap goes back to the older point's checkpoint
    assert unreadable(kit) == set()
    assert kit.verify().damaged == ()
