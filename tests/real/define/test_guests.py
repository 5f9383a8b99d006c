"""Guests of other makers and other hosts: libvirt takes what is made of them for this one, and starts it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import get_args

import libvirt
import pytest

from tests.lab.domain import remove_domain
from tests.lab.session import Lab
from tests.real.define.conftest import SWTPM
from vmbackup.hypervisor import Host
from vmbackup.hypervisor.define.define import DefineOptions
from vmbackup.hypervisor.rebuild.wishes import Kind, NewDisk

pytestmark = pytest.mark.real
GUESTS = Path(__file__).parents[2] / "unit" / "hypervisor" / "guests"
MiB = 1 << 20


def smaller(xml: str) -> str:
    """The same guest, emulated, in a size that any machine can start."""
    xml = re.sub(r"<memory unit='\w+'>\d+<", "<memory unit='MiB'>256<", xml)
    xml = re.sub(r"<currentMemory .*", "", re.sub(r"<maxMemory .*", "", xml))
    xml = xml.replace("<locked/>", "")  # which a container may not do
    return xml.replace("memory='16777216'", "memory='262144'").replace("<domain type='kvm'", "<domain type='qemu'")


@pytest.mark.parametrize("guest", sorted(path.stem for path in GUESTS.glob("*.xml")))
def test_it_is_defined_and_starts(guest: str, lab: Lab, work_dir: Path) -> None:
    """As a copy without network and without what this host lacks; machine types exact, nothing invented."""
    documents = {"domain.xml": smaller((GUESTS / f"{guest}.xml").read_text()).encode()}
    targets = re.findall(r"device='disk'.*?<target dev='(\w+)'", documents["domain.xml"].decode(), re.DOTALL)
    disks = {}
    for target in targets:
        path = work_dir / f"{target}.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(4 * MiB)], check=True)
        disks[target] = NewDisk(path)
    options = DefineOptions(lab.new_name(), networks={"*": "none"}, without=frozenset(get_args(Kind)))
    with Host.open("qemu:///system", scratch_dir=str(work_dir), state_dir=str(work_dir / "state")) as host:
        definition = host.plan_definition(documents, disks, options)
        host.define(definition)
        domain = lab.connection.lookupByName(definition.rebuilt.name)
        try:
            assert domain.UUIDString() == definition.rebuilt.uuid
            domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
        finally:
            remove_domain(domain)
            shutil.rmtree(SWTPM / definition.rebuilt.uuid, ignore_errors=True)
