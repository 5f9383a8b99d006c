"""Freeze and thaw: the guest stands still for the begin, and is thawed whatever happens."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.disk import Disk, MiB
from tests.lab.domain import Workhorse
from tests.lab.guest import Guest
from tests.real.hypervisor.conftest import REPOSITORY, URI, Shadow, new_session
from vmbackup.errors import QuiesceError
from vmbackup.hypervisor import Host
from vmbackup.hypervisor.live import probe
from vmbackup.hypervisor.tidy.intents import Intent, IntentStore

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]  # the guest's image may have to be made first
MakeDomain = Callable[..., Workhorse]
MakeGuest = Callable[..., Guest]


def begin(host: Host, guest: Guest, policy: str) -> Shadow:
    """A run that is given up after its begin; what it told stays in `shadow`."""
    with host.begin(
        host.domain(guest.name),
        repository_id=REPOSITORY,
        session=new_session(),
        parent=None,
        quiesce=policy,  # type: ignore[arg-type]
    ) as job:
        return job  # type: ignore[return-value]


def frozen(guest: Guest) -> bool:
    """What the agent says."""
    return guest.agent.call("guest-fsfreeze-status") == "frozen"


def test_a_guest_without_an_agent(make_domain: MakeDomain, host: Host) -> None:
    """auto: crash-consistent with the reason; required: an error, with nothing begun; never: not even tried."""
    shadow = Shadow(host, make_domain(Disk(size=MiB)))
    with shadow.begin(quiesce="auto") as job:
        assert (job.consistency, job.freeze_seconds) == ("crash", None)
        assert job.quiesce_note == "the guest is paused, so its agent cannot answer"
    with pytest.raises(QuiesceError, match="could not be frozen"):
        shadow.begin(quiesce="required")
    assert shadow.horse.checkpoints() == []
    shadow.horse.domain.resume()
    with shadow.begin(quiesce="auto") as job:
        assert job.quiesce_note == "the domain has no guest agent channel"
    with shadow.begin(quiesce="never") as job:
        assert (job.consistency, job.quiesce_note) == ("crash", "quiesce is off")


def test_a_real_guest(make_guest: MakeGuest, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """One guest, for it takes long to boot: freeze, failures of the thaw, the watchdog, a dead run."""
    guest = make_guest(overlay=True)
    _is_frozen_for_the_begin_only(guest, host)
    _is_thawed_when_the_begin_fails(guest, host, monkeypatch)
    _is_thawed_by_the_watchdog_of_a_dead_run(guest)
    _is_thawed_by_the_watchdog_in_time(guest)
    _is_not_touched_by_an_unarmed_watchdog(guest)
    _is_thawed_by_recovery(guest, host)
    _thaws_early(guest, host, monkeypatch)
    _has_an_agent_that_is_gone(guest, host)


def _is_frozen_for_the_begin_only(guest: Guest, host: Host) -> None:
    job = begin(host, guest, "required")
    assert job.consistency == "filesystem", job.quiesce_note
    assert job.quiesce_note is None
    assert job.freeze_seconds is not None
    print(f"frozen for {job.freeze_seconds:.3f} s")
    assert job.freeze_seconds < 8
    assert not frozen(guest)
    assert guest.agent.run("touch /root/alive && echo yes").strip() == "yes"


def _is_thawed_when_the_begin_fails(guest: Guest, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def fail(*_: object) -> None:
        seen.append(frozen(guest))
        raise RuntimeError("no")

    with monkeypatch.context() as patch:
        patch.setattr("vmbackup.hypervisor.live.beginning.Beginning._begin", fail)
        with pytest.raises(RuntimeError, match="no"):
            begin(host, guest, "auto")
    assert seen == [True]
    assert not frozen(guest)


def _watchdog(guest: Guest, seconds: float) -> subprocess.Popen[str]:
    script = Path(probe.__file__).with_name("watchdog.py")
    process = subprocess.Popen(
        [sys.executable, "-P", str(script), URI, guest.domain.UUIDString(), str(seconds)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def _is_thawed_by_the_watchdog_of_a_dead_run(guest: Guest) -> None:
    process = _watchdog(guest, 60)
    assert guest.domain.fsFreeze() > 0
    output, _ = process.communicate("arm\n", timeout=60)  # and the end of the input: the run has died
    assert (output, process.returncode) == ("thawed\n", 0)
    assert not frozen(guest)


def _is_thawed_by_the_watchdog_in_time(guest: Guest) -> None:
    process = _watchdog(guest, 1.0)
    assert process.stdin
    assert process.stdout
    assert guest.domain.fsFreeze() > 0
    started = time.monotonic()
    process.stdin.write("arm\n")
    process.stdin.flush()
    assert process.stdout.readline() == "thawed\n"
    assert time.monotonic() - started > 0.9
    assert not frozen(guest)
    process.communicate(timeout=60)


def _is_not_touched_by_an_unarmed_watchdog(guest: Guest) -> None:
    for words in ("", "arm\ndone\n"):
        process = _watchdog(guest, 0.5)
        assert guest.domain.fsFreeze() > 0
        output, _ = process.communicate(words, timeout=60)
        assert (output, process.returncode) == ("", 0)
        assert frozen(guest)
        guest.domain.fsThaw()


def _is_thawed_by_recovery(guest: Guest, host: Host) -> None:
    info = host.domain(guest.name)
    intent = Intent(
        session=new_session(), repository_id=REPOSITORY, uri=URI, domain_uuid=info.uuid, domain_name=info.name,
        domain_id=info.id or 0, pid=1, checkpoint=None, disks=(), paths={}, socket="/nowhere", scratch=(),
        scratch_bytes=0, was_running=True, frozen=True,
    )  # fmt: skip
    IntentStore(host.places.state_dir).write(intent)
    assert guest.domain.fsFreeze() > 0
    (left,) = host.recover(info, lambda _name: False)
    assert left.done == ("thawed the guest",)
    assert not frozen(guest)


def _thaws_early(guest: Guest, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else thaws while we begin: the point is crash-consistent, and says so."""
    from vmbackup.hypervisor.live.beginning import Beginning

    real = Beginning._begin

    def thaw_first(*arguments: object) -> object:
        guest.domain.fsThaw()
        return real(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Beginning, "_begin", thaw_first)
        job = begin(host, guest, "auto")
    assert job.consistency == "crash"
    assert "thawed early" in (job.quiesce_note or "")


def _has_an_agent_that_is_gone(guest: Guest, host: Host) -> None:
    guest.agent.call("guest-exec", path="/bin/systemctl", arg=["--no-block", "stop", "qemu-guest-agent"])
    deadline = time.monotonic() + 60
    while probe.agent_trouble(guest.domain) is None and time.monotonic() < deadline:
        time.sleep(0.2)
    job = begin(host, guest, "auto")
    assert (job.consistency, job.quiesce_note) == ("crash", "the guest agent is not connected")
    with pytest.raises(QuiesceError, match="not connected"):
        begin(host, guest, "required")
