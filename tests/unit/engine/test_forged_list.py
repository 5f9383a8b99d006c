"""A condemned list that nobody who collects has put there: it costs a reading, and it is told."""

from __future__ import annotations

from pathlib import Path

from tests.unit.engine.kit import RamKit
from vmbackup.engine.care.verify import verify
from vmbackup.progress import Silent
from vmbackup.repository import condemned
from vmbackup.repository.collect import PruneOptions, prune
from vmbackup.repository.condemned import ObjectName
from vmbackup.repository.layout import new_session


def test_it_is_told_and_stays(tmp_path: Path) -> None:
    """By verify and prune, with its name; a list of what is gone is none, and is dropped as ever."""
    kit = RamKit(tmp_path, {"vda": 1 << 18})
    kit.disk().write(0, b"x" * 9000)
    kit.backup()
    (pack,) = (ObjectName.parse(entry.key) for entry in kit.store.list("data/"))
    gone = condemned.put(kit.store, "default", [pack._replace(session=new_session())])
    forged = condemned.put(kit.store, "default", [pack])
    notes: list[str] = []
    noting = Silent()
    noting.note = notes.append  # type: ignore[method-assign]
    assert verify(kit.repository, None, None, noting).damaged == ()
    assert [text.partition(":")[0] for text in notes] == [f"{forged} names what restore points need, 1 in all"]
    notes.clear()
    prune(kit.repository, PruneOptions(wait=0.0), progress=noting)
    assert [text.partition(":")[0] for text in notes] == [f"{forged} names what restore points need, 1 in all"]
    assert {entry.key for entry in kit.store.list("condemned/")} == {forged}, gone
