"""When a restored guest is the guest itself, and when it is another."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vmbackup.errors import HypervisorError, UsageError
from vmbackup.hypervisor.define import define
from vmbackup.hypervisor.define.define import DefineOptions
from vmbackup.hypervisor.define.domains_here import Other, refuse_taken, shared_macs
from vmbackup.hypervisor.define.guest_state import GuestState
from vmbackup.hypervisor.rebuild.wishes import Lack, NbdSource, NewDisk, Rebuilt

UUID, ANOTHER = "0a6dd5b1-33b7-4a0e-9d1b-2f6a9d0b7c11", "7f1f3a1e-6a52-44c6-9a55-0d4ab1dd0f02"
MAC = "52:54:00:6b:3c:58"
XML = (
    f"<domain><name>web1</name><uuid>{UUID}</uuid><devices><interface><mac address='{MAC.upper()}'/></interface>"
    "<tpm><backend type='emulator' version='1.2'/></tpm></devices></domain>"
)
ITSELF = Other("web1", UUID, frozenset((MAC,)))
RENAMED = replace(ITSELF, name="old-web1")
STRANGER = Other("db1", ANOTHER, frozenset())
MADE = Rebuilt(XML, "web1", UUID, (), ())


def wishes(tmp_path: Path, *others: Other, documents: dict[str, bytes] | None = None, **options: Any) -> Any:
    state = GuestState(str(tmp_path / "qemu"))
    return define._wishes(ET.fromstring(XML), list(others), documents or {}, {}, DefineOptions(**options), state)


@pytest.mark.parametrize(
    ("others", "options", "uuid", "mac"),
    [
        ((), {}, True, True),
        ((STRANGER,), {}, True, True),
        ((), {"name": "web1"}, True, True),
        ((), {"name": "web2"}, False, False),
        ((ITSELF,), {"name": "web2"}, False, False),
        ((RENAMED,), {}, False, False),
        ((), {"name": "web2", "keep_mac": True}, False, True),
        ((), {"name": "web2", "keep_uuid": True}, True, False),
        ((RENAMED,), {"keep_mac": True}, False, True),
    ],
)
def test_a_move_or_a_copy(
    tmp_path: Path, others: tuple[Other, ...], options: dict[str, Any], uuid: bool, mac: bool
) -> None:
    """Itself where its own name is kept and no guest of its UUID is here; else a copy, but for what is kept."""
    found = wishes(tmp_path, *others, **options)
    assert (found.keep_uuid, found.keep_mac) == (uuid, mac)


def test_what_the_restore_point_holds(tmp_path: Path) -> None:
    documents = {"nvram.fd": b"1234", "tpm-00.permall": b"x"}
    found = wishes(tmp_path, documents=documents)
    assert found.nvram == tmp_path / "qemu" / "nvram" / "web1_VARS.fd"
    assert (found.nvram_bytes, found.tpm) == (4, True)
    found = wishes(tmp_path, documents={"tpm2-00.permall": b"of another version"})
    assert (found.nvram, found.nvram_bytes, found.tpm) == (None, 0, False)


@pytest.mark.parametrize("name", ["a/b", " web", "web ", " "])
def test_names_that_cannot_be(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name"):
        wishes(tmp_path, name=name)


def test_taken() -> None:
    """By name, and by UUID; a stranger is no matter."""
    refuse_taken(MADE, [STRANGER])
    with pytest.raises(HypervisorError, match="a domain web1 on this host already"):
        refuse_taken(MADE, [STRANGER, replace(STRANGER, name="web1")])
    with pytest.raises(HypervisorError, match=f"domain old-web1 of this host has the UUID {UUID}"):
        refuse_taken(MADE, [RENAMED])


def test_a_mac_address_that_two_have() -> None:
    assert shared_macs(MADE, [STRANGER, RENAMED]) == [("old-web1", MAC)]


def test_only_what_is_grave_is_refused() -> None:
    """All of it in one sentence; what the guest may go without is not asked for twice."""
    slow, device, share = Lack("placement", "slow"), Lack("host-devices", "no card", "h"), Lack("shares", "no dir", "h")
    define._refuse_lacking((slow,), frozenset())
    define._refuse_lacking((slow, device, share), frozenset(("host-devices", "shares")))
    with pytest.raises(HypervisorError, match=r"^no card; no dir$") as error:
        define._refuse_lacking((slow, device, share), frozenset())
    assert error.value.hint == "h"


def test_a_folder_that_qemu_may_not_enter(tmp_path: Path) -> None:
    """Also where it is not made yet; for root, or an export, nothing is closed."""
    tmp_path.chmod(0o700)
    nobody = 65534, 65534
    disks = {"vda": NewDisk(tmp_path / "not" / "yet" / "vda.qcow2"), "vdb": NewDisk(NbdSource("vdb"))}
    with pytest.raises(HypervisorError, match="may not pass") as error:
        define._refuse_closed(disks, nobody)
    assert "chmod o+x" in error.value.hint
    define._refuse_closed(disks, (0, 0))
    define._refuse_closed(disks, None)
    define._refuse_closed({"vdb": disks["vdb"]}, nobody)
