"""A guest with UEFI and a TPM: its variables and its TPM's state come along, and it starts with them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from tests.lab.disk import Disk, MiB
from tests.lab.domain import Workhorse, remove_domain
from tests.lab.session import Lab
from tests.real.cli.test_commands import Program
from tests.real.define.conftest import SWTPM

pytestmark = pytest.mark.real
CODE, VARS = Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
NVRAM = Path("/var/lib/libvirt/qemu/nvram")
STATE = "tpm2/tpm2-00.permall"
TPM = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"


@pytest.fixture
def horse(lab: Lab, make_domain: Callable[..., Workhorse]) -> Iterator[Workhorse]:
    """Started once, so that libvirt has made both; then with variables that are no template's."""
    if not CODE.exists() or not shutil.which("swtpm"):
        pytest.skip("needs UEFI firmware and an emulated TPM: apt-get install ovmf swtpm swtpm-tools")
    made = make_domain(Disk("vda", size=4 * MiB), start=False)
    xml = made.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    made.domain.undefine()
    xml = xml.replace(
        "</os>", f"<loader readonly='yes' type='pflash'>{CODE}</loader>"
        f"<nvram template='{VARS}'>{NVRAM}/{made.name}_VARS.fd</nvram></os><features><acpi/></features>"
    ).replace("</devices>", f"{TPM}</devices>")  # fmt: skip
    made.domain = lab.connection.defineXML(xml)
    made.start()
    with open(NVRAM / f"{made.name}_VARS.fd", "r+b") as file:
        file.seek(300_000)
        file.write(b"a key of the guest's own")
    yield made
    remove_domain(made.domain)
    shutil.rmtree(SWTPM / made.uuid, ignore_errors=True)


def state_of(uuid: str) -> bytes:
    return (SWTPM / uuid / STATE).read_bytes()


def test_both_come_along(
    vmbackup: Program, horse: Workhorse, domain: Callable[[str], Any], lab: Lab, work_dir: Path
) -> None:
    """Of a copy beside the original, and of the guest itself after all of it is gone. Both start."""
    point = vmbackup.json("backup", horse.name)["points"][0]
    assert point["warnings"] == []
    variables, state = (NVRAM / f"{horse.name}_VARS.fd").read_bytes(), state_of(horse.uuid)

    name = lab.new_name()
    command = ("restore", horse.name, "--output", str(work_dir / "copy"), "--define", "--name", name)
    assert "TPM of the original" in "".join(vmbackup.json(*command)["domain"]["notes"])
    copy = domain(name)
    assert (work_dir / "copy" / "nvram.fd").read_bytes() == variables
    assert (NVRAM / f"{name}_VARS.fd").read_bytes() == variables
    assert state_of(copy.UUIDString()) == state
    copy.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
    assert (NVRAM / f"{name}_VARS.fd").read_bytes() == variables

    horse.domain.destroy()
    horse.domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)
    shutil.rmtree(SWTPM / horse.uuid, ignore_errors=True)
    vmbackup("restore", horse.name, "--output", str(work_dir / "moved"), "--define", "--start")
    assert (NVRAM / f"{horse.name}_VARS.fd").read_bytes() == variables
    assert domain(horse.name).isActive()
    assert (SWTPM / horse.uuid / STATE).exists()


def test_what_an_earlier_guest_left(vmbackup: Program, horse: Workhorse, work_dir: Path) -> None:
    """Its variables are not written over, and its TPM is not taken for the restored one's."""
    vmbackup("backup", horse.name)
    horse.domain.destroy()
    flags = libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
    horse.domain.undefineFlags(flags)
    (SWTPM / horse.uuid / "tpm2").mkdir(parents=True, exist_ok=True)
    left = NVRAM / f"{horse.name}_VARS.fd"
    try:
        told = vmbackup("restore", horse.name, "--output", str(work_dir / "out"), "--define", code=1)
        assert f"the TPM state of an earlier guest lies in {SWTPM / horse.uuid}" in told
        assert "mv " in told
        shutil.rmtree(SWTPM / horse.uuid)
        vmbackup("restore", horse.name, "--output", str(work_dir / "out"), "--define")
        horse.domain = horse.domain.connect().lookupByName(horse.name)
        assert f"{horse.name}-2_VARS.fd" in horse.domain.XMLDesc(0)
        assert (NVRAM / f"{horse.name}-2_VARS.fd").read_bytes() == left.read_bytes()
    finally:
        left.unlink()
