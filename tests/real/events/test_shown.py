"""What a domain's own XML shows of its backups: the truth, beside what others wrote there, and in no restored guest."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.lab.domain import Workhorse
from tests.real.engine.kit import Kit
from tests.real.engine.program import Program
from tests.real.hypervisor.conftest import Shadow
from vmbackup.engine.backup.run import BackupOptions, backup
from vmbackup.errors import HypervisorError
from vmbackup.hypervisor import Host
from vmbackup.hypervisor.shown import NAMESPACE, Shown, without
from vmbackup.hypervisor.xmltree import parse
from vmbackup.progress import Silent

pytestmark = pytest.mark.real
MakeDomain = Callable[..., Workhorse]
_ELEMENT, _LIVE, _CONFIG = 2, 1, 2
OTHERS = "urn:somebody:else"


class Notes(Silent):
    """What the operator is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def program(work_dir: Path, scratch_dir: Path) -> Program:
    """A configuration that wants it."""
    made = Program.make(work_dir, scratch_dir)
    path = made.folder / "config.toml"
    path.write_text(path.read_text().replace("[libvirt]\n", "[libvirt]\ndomain_metadata = true\n"))
    return made


def shown(horse: Workhorse, flags: int) -> list[dict[str, str]]:
    return [dict(each.attrib) for each in parse(horse.domain.metadata(_ELEMENT, NAMESPACE, flags))]


def test_the_newest_point_is_shown(program: Program, make_domain: MakeDomain, work_dir: Path) -> None:
    """In the live XML and the definition, beside others' metadata; the restore point's XML has theirs alone."""
    horse = make_domain()
    horse.domain.setMetadata(_ELEMENT, "<note>mine</note>", "else", OTHERS, _LIVE | _CONFIG)
    for _ in range(2):
        point = program.json("backup", horse.name)["points"][0]
        told = {"repository": "local", "place": f"file://{program.repository}", "point": point["id"]}
        for flags in (_LIVE, _CONFIG):
            (found,) = shown(horse, flags)
            assert found.pop("time")[:16] == point["time"][:16]
            assert found == told
    program.json("restore", horse.name, "--output", str(work_dir / "restored"))
    restored = (work_dir / "restored" / "domain.xml").read_text()
    assert NAMESPACE not in restored
    assert OTHERS in restored
    program.json("purge", horse.name)
    assert NAMESPACE not in horse.domain.XMLDesc(0) + horse.domain.XMLDesc(2)
    assert OTHERS in horse.domain.XMLDesc(0)


def test_a_domain_that_is_off_shows_it_too(program: Program, make_domain: MakeDomain) -> None:
    horse = make_domain()
    program.json("backup", horse.name)
    horse.stop()
    point = program.json("backup", horse.name)["points"][0]
    assert [each["point"] for each in shown(horse, _CONFIG)] == [point["id"]]


def test_it_never_fails_a_backup(make_domain: MakeDomain, kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The restore point is there, and a sentence says what is not shown."""
    horse, notes = make_domain(), Notes()

    def fails(*_: Any) -> bool:
        raise HypervisorError("libvirt has other worries")

    monkeypatch.setattr(Host, "show", fails)
    point = backup(kit.host, kit.repository, horse.name, BackupOptions(shown_as="local"), notes)
    assert kit.point(point.id)
    assert notes.said == [f"the XML of {horse.name} does not show its new restore point: libvirt has other worries"]


def test_another_job_is_not_waited_for(make_domain: MakeDomain, host: Host, short_seal: None) -> None:
    """libvirt's own wait would be half a minute."""
    horse = make_domain()
    with Shadow(host, horse).begin():
        begun = time.monotonic()
        assert not host.show(host.domain(horse.name), Shown("local", "file:///r", "p", datetime.now(UTC)))
        assert time.monotonic() - begun < 10


@pytest.mark.parametrize("inside", ["", "<metadata>\n    <a:b xmlns:a='urn:a'/>\n  </metadata>\n  "])
def test_the_rest_of_the_xml_stays_as_it_is(inside: str) -> None:
    """Byte for byte, also where nothing else is in it."""
    bare = f"<domain>\n  {inside}<name>a</name>\n</domain>"
    ours = f'\n    <vmbackup:backups xmlns:vmbackup="{NAMESPACE}">\n      <vmbackup:backup/>\n    </vmbackup:backups>'
    if inside:
        assert without(bare.replace("<metadata>", f"<metadata>{ours}")) == bare
    else:
        full = bare.replace("<name>", f"<metadata>{ours}\n  </metadata>\n  <name>")
        assert without(full) == bare
    assert without(bare) == bare


def test_nothing_is_shown_unless_wanted(work_dir: Path, scratch_dir: Path, make_domain: MakeDomain) -> None:
    horse = make_domain()
    Program.make(work_dir, scratch_dir).json("backup", horse.name)
    assert NAMESPACE not in horse.domain.XMLDesc(0) + horse.domain.XMLDesc(2)
