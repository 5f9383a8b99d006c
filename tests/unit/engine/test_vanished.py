"""What was taken out of a repository whole: its newest restore point, a key slot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.engine.kit import SECRET, RamKit
from vmbackup.errors import DamageError
from vmbackup.repository import Repository
from vmbackup.repository import slots as slot_list
from vmbackup.repository.keys import Secret
from vmbackup.repository.layout import short_id
from vmbackup.repository.resolve import resolve
from vmbackup.repository.session import Session

MIB = 1 << 20


@pytest.fixture
def kit(tmp_path: Path) -> RamKit:
    made = RamKit(tmp_path, {"vda": MIB})
    for number in range(2):
        made.disk().write(number * 9000, b"x" * 9000)
        made.backup()
    return made


def slots(kit: RamKit) -> list[Path]:
    return sorted((kit.root / "repository" / "keys").iterdir())


def test_an_older_point_never_stands_in_for_one_that_is_gone(kit: RamKit) -> None:
    """A restore of the guest's newest point fails and names it; the older one is to be had by its name."""
    newest, older = kit.points()
    (kit.root / "repository" / newest.key).unlink()
    found = kit.repository.survey()
    assert [point.id for point in found.points] == [older.id]
    for text in ("guest@latest", "guest"):
        with pytest.raises(DamageError, match=f"{short_id(newest.session)}, cannot be read.*is missing") as caught:
            resolve(found, text, domains=True)
        assert caught.value.object_key == newest.key
    assert resolve(found, older.id).id == older.id
    (damage,) = kit.verify(None).damaged
    assert (damage.object, damage.points) == (newest.key, (short_id(newest.session),))


def test_a_run_that_goes_on_is_not_gone(kit: RamKit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither while it is pinned, nor where it commits while the repository is looked through."""
    original = Session.commit
    surveyed: list[list[DamageError]] = []

    def commit(self: Session, *args: object) -> object:
        surveyed.append(kit.repository.survey().damaged)  # its index is written, its point is not
        listed = kit.repository.read_points()
        point = original(self, *args)  # type: ignore[arg-type]
        self.unpin()
        with monkeypatch.context() as patch:
            patch.setattr(kit.repository, "read_points", lambda **_: listed)
            surveyed.append(kit.repository.survey().damaged)
        return point

    monkeypatch.setattr(Session, "commit", commit)
    kit.disk().write(MIB // 2, b"y")
    kit.backup()
    assert surveyed == [[], []]


@pytest.mark.parametrize("which", [0, 1])
def test_a_key_slot_that_was_taken_away_is_told(kit: RamKit, which: int) -> None:
    """Of init's two slots, whichever: the signed config names them."""
    path = slots(kit)[which]
    path.unlink()
    assert [damage.object for damage in kit.verify(None).damaged] == [f"keys/{path.name}"]


def test_added_slots_are_listed_though_others_add_too(kit: RamKit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is in the next version of the config, also where another host made that version first."""
    other = Repository.open(kit.store, SECRET, kit.trust)
    original: Callable[..., None] = Repository._put_config
    first = True

    def put(self: Repository, document: dict[str, object]) -> None:
        nonlocal first
        if first:
            first = False
            slot_list.add(other, Secret.passphrase("one", random=True), "other host")
        original(self, document)

    monkeypatch.setattr(Repository, "_put_config", put)
    slot_list.add(kit.repository, Secret.passphrase("two", random=True), "this host")
    kit.reopen()
    assert kit.repository.config.version == 3
    assert set(kit.repository.config.slots) == {path.name for path in slots(kit)}
    assert len(slots(kit)) == 4
    assert kit.verify(None).damaged == ()
    slots(kit)[2].unlink()
    assert len(kit.verify(None).damaged) == 1


def test_an_object_in_anothers_place_is_told(kit: RamKit) -> None:
    """A key slot or a group's keys under another number: each is whole, and signed, but not what its name says."""
    one, two = slots(kit)
    for path, other in ((one, two), (two, one)):
        data = path.read_bytes()
        path.write_bytes(other.read_bytes())
        assert [damage.object for damage in kit.verify(None).damaged] == [f"keys/{path.name}"]
        path.write_bytes(data)
    groups = kit.root / "repository" / "groups" / "default"
    (groups / "1").write_bytes((groups / "2").read_bytes())
    assert [damage.object for damage in kit.verify(None).damaged] == ["groups/default/1"]


FOLDERS = ["keys", "writers", "groups", "sessions", "index", "points", "data", "trash", "dead", "condemned", "damage"]
FOREIGN = ["README", "default/README", "default/.nfs00001", "default/{lineage}/.nfs00001", "default/{lineage}/README"]


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("folder", FOLDERS)
def test_foreign_files_are_no_objects(kit: RamKit, folder: str, name: str) -> None:
    """What an NFS server, an editor or a person leaves in the folder hinders nothing."""
    lineage = kit.points()[0].lineage.id.hex()
    path = kit.root / "repository" / folder / name.format(lineage=lineage)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("?")
    kit.reopen()
    assert len(kit.repository.survey().points) == 2
    assert len(list(slot_list.listed(kit.repository))) == 2
    kit.backup()
    kit.check_all()


def test_an_object_of_impossible_size_is_not_read(kit: RamKit) -> None:
    """A hostile store shows a huge object: told as damage, and never held in memory."""
    newest, _ = kit.points()
    path = kit.root / "repository" / newest.key
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    found = kit.repository.survey()
    assert [error.object_key for error in found.damaged] == [newest.key]
    assert "more than any object can have" in found.damaged[0].message
