"""Files beside the disks of a restored guest: written whole, for their owner, or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from vmbackup.errors import TargetError
from vmbackup.hypervisor.define.guest_state import GuestState
from vmbackup.hypervisor.rebuild.wishes import Rebuilt

UUID = "5a6d1c1e-0c4f-4b6e-8d2e-0d6c1f4f7a01"
DOCUMENTS = {"nvram.fd": b"variables", "tpm2-00.permall": b"keys", "tpm-00.permall": b"older keys"}


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    made = tmp_path / "qemu"
    made.mkdir()
    return made


def guest(folders: Path, version: str | None = "2.0", *, uefi: bool = True) -> Rebuilt:
    nvram = GuestState(str(folders)).nvram_path("g") if uefi else None
    return Rebuilt("<domain/>", "g", UUID, (), (), nvram=nvram, tpm_version=version)


def written(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_what_a_guest_has_is_written(folders: Path) -> None:
    """For its owner only; the folders on the way may be passed, whatever the umask."""
    umask = os.umask(0o077)
    try:
        GuestState(str(folders)).put(guest(folders), DOCUMENTS, None)
    finally:
        os.umask(umask)
    state = f"swtpm/{UUID}/tpm2/tpm2-00.permall"
    assert written(folders.parent) == {"qemu/nvram/g_VARS.fd": b"variables", state: b"keys"}
    modes = {path: stat.S_IMODE((folders.parent / path).stat().st_mode) for path in (state, "swtpm", f"swtpm/{UUID}")}
    assert modes == {state: 0o600, "swtpm": 0o711, f"swtpm/{UUID}": 0o711}


def test_an_older_tpm(folders: Path) -> None:
    GuestState(str(folders)).put(guest(folders, "1.2", uefi=False), DOCUMENTS, None)
    assert written(folders.parent) == {f"swtpm/{UUID}/tpm1.2/tpm-00.permall": b"older keys"}


def test_a_guest_without_either(folders: Path) -> None:
    GuestState(str(folders)).put(guest(folders, None, uefi=False), DOCUMENTS, None)
    GuestState(str(folders)).put(guest(folders), {}, None)
    assert written(folders.parent) == {}


def test_undone(folders: Path) -> None:
    """What was made goes, folders too; what was there before stays."""
    (folders / "nvram").mkdir()
    state = GuestState(str(folders))
    state.put(guest(folders), DOCUMENTS, None)
    (folders.parent / "swtpm" / UUID / "tpm2" / ".lock").touch()  # swtpm's
    state.undo()
    assert sorted(path.name for path in folders.parent.rglob("*")) == ["nvram", "qemu"]


def test_what_fails_half_way_leaves_nothing(folders: Path) -> None:
    (folders.parent / "swtpm").write_text("in the way")
    with pytest.raises(TargetError, match="cannot write"):
        GuestState(str(folders)).put(guest(folders), DOCUMENTS, None)
    assert written(folders.parent) == {"swtpm": b"in the way"}


def test_no_file_is_written_over(folders: Path) -> None:
    """Neither one that is there when the guest is planned, nor one that comes meanwhile."""
    planned = guest(folders)
    (folders / "nvram").mkdir()
    (folders / "nvram" / "g_VARS.fd").write_bytes(b"another's")
    with pytest.raises(TargetError, match="File exists"):
        GuestState(str(folders)).put(planned, DOCUMENTS, None)
    assert written(folders.parent) == {"qemu/nvram/g_VARS.fd": b"another's"}
    assert GuestState(str(folders)).nvram_path("g").name == "g-2_VARS.fd"


def test_state_of_an_earlier_guest(folders: Path) -> None:
    """It is named, with what takes it out of the way."""
    state, planned = GuestState(str(folders)), guest(folders)
    state.check(planned)
    (folders / "save").mkdir()
    (folders / "save" / "g.save").write_bytes(b"memory")
    with pytest.raises(TargetError, match="would spoil the restored disks"):
        state.check(planned)
    (folders.parent / "swtpm" / UUID).mkdir(parents=True)
    with pytest.raises(TargetError, match="TPM state of an earlier guest") as error:
        state.check(planned)
    assert error.value.hint.startswith("move it away: mv ")


def test_checkpoints_of_an_earlier_guest(folders: Path) -> None:
    """Ours go; another tool's are never touched."""
    place = folders / "checkpoint" / "g"
    place.mkdir(parents=True)
    for name in ("vmbackup-0123abcd-20261124T030000Z-0123456789ab", "monday"):
        (place / f"{name}.xml").write_text("<domaincheckpoint/>")
    GuestState(str(folders)).drop_stale_checkpoints("g")
    GuestState(str(folders)).drop_stale_checkpoints("nobody")
    assert [path.name for path in place.iterdir()] == ["monday.xml"]
