"""The operator's commands on this host around the begin of a guest that is off; inside it nothing can be run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.disk import Disk, MiB
from tests.lab.domain import Workhorse
from tests.real.hypervisor.conftest import Shadow, new_session
from vmbackup.errors import QuiesceError
from vmbackup.hypervisor import Host
from vmbackup.hypervisor.images import image_info
from vmbackup.hypervisor.source import FreezeOptions, Hooks

pytestmark = pytest.mark.real
MakeDomain = Callable[..., Workhorse]
MakeShadow = Callable[..., Shadow]
INSIDE = ("/usr/bin/quiet-db", "on")


def telling(told: Path, code: int = 0) -> tuple[str, ...]:
    return ("/bin/sh", "-c", f'echo "$VMBACKUP_PHASE $VMBACKUP_DOMAIN $VMBACKUP_JOB" >> {told}; exit {code}')


def options(before: tuple[str, ...], after: tuple[str, ...], seconds: float = 30) -> FreezeOptions:
    return FreezeOptions(hooks=Hooks(before, after, INSIDE, INSIDE, seconds, {"VMBACKUP_JOB": "nightly"}))


def test_around_the_bitmaps(make_domain: MakeDomain, make_shadow: MakeShadow, tmp_path: Path) -> None:
    """Before there is a bitmap, and after; a guest alone, or of a group. The point says that none ran inside."""
    horse = make_domain(Disk(size=MiB), start=False)
    shadow, told, path = make_shadow(horse), tmp_path / "told", horse.path("vda")
    looks = f'echo "$VMBACKUP_PHASE $(qemu-img info -U {path} | grep -c "name: vmbackup-")" >> {told}'
    hooks = options(("/bin/sh", "-c", looks), ("/bin/sh", "-c", looks))
    with shadow.begin(freezing=hooks, quiesce="never") as running:
        assert told.read_text() == "before 0\nafter 1\n"
        assert running.quiesce_note
        assert running.quiesce_note.endswith("; the hooks inside it were not run")
        assert not running.notes
    told.unlink()
    hooks = options(telling(told), telling(told))
    domain, host = shadow.host.domain(horse.name), shadow.host
    start = host.prepare(domain, repository_id="0123abcd", session=new_session(), parent=None, freezing=hooks)
    assert not told.exists()
    (together,) = host.begin_together([start])
    assert not isinstance(together, Exception)
    together.finish(committed=False)
    assert told.read_text() == f"before {horse.name} nightly\nafter {horse.name} nightly\n"
    with shadow.begin() as running:
        assert running.quiesce_note
        assert "hooks" not in running.quiesce_note


def test_one_that_fails(
    make_domain: MakeDomain, make_shadow: MakeShadow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warning; with `required` one before fails the run, nothing is left behind, and those after run all the same."""
    horse = make_domain(Disk(size=MiB), start=False)
    shadow, told = make_shadow(horse), tmp_path / "told"
    monkeypatch.setattr("vmbackup.hypervisor.off.begin._consistency", lambda _: ("filesystem", "the guest was off"))
    with shadow.begin(freezing=options(telling(told, 3), telling(told, 4))) as running:
        assert running.consistency == "filesystem"
        assert running.notes == [
            "the hook /bin/sh before the begin failed: exit code 3",
            "the hook /bin/sh after the begin failed: exit code 4",
        ]
    told.unlink()
    with pytest.raises(QuiesceError, match="could not be brought to rest: the hook /bin/sh before the begin failed"):
        shadow.begin(freezing=options(telling(told, 3), telling(told)), quiesce="required")
    assert told.read_text().splitlines() == [f"{phase} {horse.name} nightly" for phase in ("before", "after")]
    assert (horse.checkpoints(), image_info(str(horse.path("vda"))).bitmaps) == ([], {})
    with shadow.begin(freezing=options(("/bin/sleep", "60"), (), 0.2)) as running:
        assert running.notes == ["the hook /bin/sleep before the begin failed: it was ended after 0 s"]
    with shadow.begin(freezing=options((), telling(told)), quiesce="required") as running:
        assert not running.notes


_VICTIM = """
import sys, time
from vmbackup.hypervisor import Host
from vmbackup.hypervisor.off import begin
from vmbackup.hypervisor.source import FreezeOptions, Hooks
name, scratch, state, session, told = sys.argv[1:]
def stay(*_):
    print("begun", flush=True)
    time.sleep(600)
begin._anchor = stay
hooks = Hooks(after=("/bin/sh", "-c", f"echo after > {told}.new; mv {told}.new {told}"))
with Host.open("qemu:///system", scratch_dir=scratch, state_dir=state) as host:
    host.begin(host.domain(name), repository_id="0123abcd", session=session, parent=None,
               freezing=FreezeOptions(hooks=hooks))
"""


def test_killed_between_them(host: Host, make_domain: MakeDomain, scratch_dir: Path, tmp_path: Path) -> None:
    """kill -9: the watchdog runs those after."""
    horse, told = make_domain(Disk(size=MiB), start=False), tmp_path / "told"
    arguments = [horse.name, str(scratch_dir), host.places.state_dir, new_session(), str(told)]
    with subprocess.Popen([sys.executable, "-P", "-c", _VICTIM, *arguments], stdout=subprocess.PIPE) as victim:
        assert victim.stdout
        assert victim.stdout.readline() == b"begun\n"
        assert not told.exists()
        os.kill(victim.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while not told.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert told.read_text() == "after\n"
    host.recover(host.domain(horse.name), lambda _: False)
