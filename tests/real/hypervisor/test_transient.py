"""Domains with no definition: libvirt forgets their checkpoints as they end, and the image has the bitmaps still."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import libvirt
import pytest

from tests.lab.disk import Disk, MiB
from tests.lab.domain import Workhorse
from tests.lab.session import Lab
from tests.real.hypervisor.conftest import Shadow
from vmbackup.nbd import Kind

pytestmark = [pytest.mark.real, pytest.mark.versions]
MakeDomain = Callable[..., Workhorse]
MakeShadow = Callable[..., Shadow]
K64 = 65536


@pytest.fixture
def horse(lab: Lab, make_domain: MakeDomain) -> Iterator[Workhorse]:
    """A running one with no definition."""
    made = make_domain(Disk(size=4 * MiB))
    made.domain.undefine()
    yield made
    # libvirt's backupBegin writes a definition of a transient domain, which it reads when it starts again (9.0).
    Path(f"/etc/libvirt/qemu/{made.name}.xml").unlink(missing_ok=True)


def create_again(horse: Workhorse, xml: str) -> None:
    """As its owner's tool would."""
    horse.domain = horse.domain.connect().createXML(xml, libvirt.VIR_DOMAIN_START_PAUSED)


def test_one_that_ended_in_order_stays_incremental(
    horse: Workhorse, make_shadow: MakeShadow, work_dir: Path
) -> None:
    """Its checkpoint is defined again from the restore point."""
    shadow = make_shadow(horse)
    shadow.run()
    horse.write("vda", MiB, K64, 0x61)
    xml = horse.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    horse.stop()
    create_again(horse, xml)
    assert horse.checkpoints() == []
    shadow.run()
    assert shadow.modes == {"vda": "incremental"}
    assert shadow.kinds("vda")[Kind.DATA] == K64
    shadow.compare(work_dir)
    assert shadow.anchor
    assert horse.checkpoints() == [shadow.anchor.checkpoint]


def test_one_whose_qemu_was_killed_is_read_whole_and_says_why(
    horse: Workhorse, make_shadow: MakeShadow, work_dir: Path
) -> None:
    """Checkpoint and bitmap are gone; the next backup is incremental again."""
    shadow = make_shadow(horse)
    shadow.run()
    xml = horse.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    horse.kill()
    create_again(horse, xml)
    horse.write("vda", MiB, K64, 0x62)
    shadow.run()
    assert shadow.modes == {"vda": "reread"}
    assert "and its bitmaps are gone from the domain" in (shadow.reasons["vda"] or "")
    shadow.compare(work_dir)
    shadow.run()
    assert shadow.modes == {"vda": "incremental"}

