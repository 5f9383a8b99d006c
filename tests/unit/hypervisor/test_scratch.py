"""How much scratch a run wants, and when it gives up."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.hypervisor.test_intents import INTENT
from vmbackup.errors import ScratchFullError
from vmbackup.hypervisor.checks import host as checks
from vmbackup.hypervisor.live import scratch

MiB, GiB = 1 << 20, 1 << 30


def test_what_a_run_wants() -> None:
    """A fifth of the virtual sizes, at most 10 GiB."""
    assert scratch.needed_bytes([10 * GiB, 10 * GiB]) == 4 * GiB
    assert scratch.needed_bytes([1 << 44]) == 10 * GiB


def test_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What others reserved and have not used is not there."""
    monkeypatch.setattr(scratch, "free_bytes", lambda _folder: 10 * MiB)
    assert scratch.budget("/s", 4 * MiB, []) == 10 * MiB
    other = INTENT.__class__(**{**vars(INTENT), "scratch_bytes": 7 * MiB, "scratch": (str(tmp_path / "x"),)})
    with pytest.raises(ScratchFullError, match=r"7\.0 MiB of it reserved"):
        scratch.budget("/s", 4 * MiB, [other])
    (tmp_path / "x").write_bytes(b"\1" * 5 * MiB)
    assert scratch.budget("/s", 4 * MiB, [other]) == 8 * MiB


def test_the_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """80 % of the space used, or the floor reached by others, ends a run."""
    free = 100 * MiB
    monkeypatch.setattr(scratch, "free_bytes", lambda _folder: free)
    file = tmp_path / "x"
    watch = scratch.ScratchWatch("/s", [str(file), str(tmp_path / "y")], 10 * MiB)
    watch.look()
    assert watch.first_threshold() == 4 * MiB
    file.write_bytes(b"\1" * 6 * MiB)
    watch.look()
    assert 6 * MiB < watch.next_threshold_of(str(file)) <= 8 * MiB
    file.write_bytes(b"\1" * 9 * MiB)
    with pytest.raises(ScratchFullError, match=r"overwrote 9\.0 MiB"):
        watch.look()
    file.write_bytes(b"")
    watch.look()
    free = MiB
    with pytest.raises(ScratchFullError):
        watch.look()


def test_the_folder_is_made_for_qemus_user(tmp_path: Path) -> None:
    """0711 whatever the umask; one that is there is left as it is."""
    made = tmp_path / "a" / "scratch"
    scratch.prepare_folder(str(made))
    assert made.stat().st_mode & 0o777 == 0o711
    made.chmod(0o755)
    scratch.prepare_folder(str(made))
    assert made.stat().st_mode & 0o777 == 0o755


def test_who_can_pass(tmp_path: Path) -> None:
    """The first closed folder on the way is named."""
    (tmp_path / "open" / "closed" / "below").mkdir(parents=True)
    for folder in (tmp_path, *list(tmp_path.parents)[:-2]):
        if folder.stat().st_uid == 0 and "pytest" in str(folder):
            folder.chmod(0o711)
    (tmp_path / "open" / "closed").chmod(0o700)
    assert checks.closed_to(str(tmp_path / "open" / "closed" / "below"), 64055, 64055) == str(
        tmp_path / "open" / "closed"
    )
    assert checks.closed_to(str(tmp_path / "open"), 64055, 64055) is None
    assert checks.closed_to(str(tmp_path / "open" / "closed"), 0, 0) is None


def test_qemus_user_from_the_capabilities() -> None:
    """The DAC label; none where libvirt changes no users."""
    xml = (
        "<capabilities><host><secmodel><model>apparmor</model></secmodel><secmodel><model>dac</model>"
        "<baselabel type='kvm'>+64055:+107</baselabel></secmodel></host></capabilities>"
    )
    assert checks.qemu_user(xml) == (64055, 107)
    assert checks.qemu_user("<capabilities><host/></capabilities>") is None


def test_versions_are_read_by_people() -> None:
    """9000000 is 9.0.0."""
    assert checks.version_text(7_006_001) == "7.6.1"


def test_the_file_system_of_a_path() -> None:
    """/proc is proc."""
    assert checks.file_system("/proc/self") == "proc"
