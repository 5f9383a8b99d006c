"""A drill as it goes, with a guest that does what it is told: what is waited for, told and recorded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.engine.test_drill_checks import HOSTNAME, SSH, Guest, ended
from tests.unit.engine.test_drill_records import NOON, Kit
from vmbackup.engine.drill import drill as module
from vmbackup.engine.drill.drill import Clocks, DrillFailedError, DrillOptions, DrillReport, drill
from vmbackup.engine.drill.guest import DrillGuest
from vmbackup.errors import AccessError, DamageError, HypervisorError, TargetError
from vmbackup.hypervisor.live.agent import AgentSilentError
from vmbackup.hypervisor.rebuild.isolate import Isolated
from vmbackup.hypervisor.started.console import Console
from vmbackup.progress import SILENT
from vmbackup.repository import drills

PIXEL = b"P6 1 1 255 abc"


class Boots(Guest):
    """A guest that answers `answers_at`, prints `printed` (second -> text) and ends or is paused at some second."""

    def __init__(self) -> None:
        super().__init__()
        self.answers_at, self.gone_at, self.paused_at, self.unread_at = 23.0, 1e9, 1e9, 1e9
        self.printed: dict[float, bytes] = {1.0: b"SeaBIOS\r\n", 20.0: b"web01 lo", 21.0: b"gin: "}
        self.console, self.unread = Console(), []  # type: ignore[var-annotated]
        self.picture: bytes | Exception = PIXEL
        self.has_agent, self.refused = True, None  # type: ignore[var-annotated]
        self.ended = 0
        self.agent = self

    def guest_ping(self) -> Any:
        if self.now < self.answers_at:
            raise AgentSilentError("the guest agent does not answer: QEMU guest agent is not connected")
        return {}

    def state(self) -> str:
        return "gone" if self.now >= self.gone_at else "error" if self.now >= self.paused_at else "running"

    def listen(self) -> list[str]:
        if self.now >= self.unread_at:
            self.unread[:] = ["data/x is missing"]
        due = [second for second in self.printed if second <= self.now]
        return [line for second in due for line in self.console.feed(self.printed.pop(second))]

    def screen(self) -> tuple[str, bytes]:
        if isinstance(self.picture, Exception):
            raise self.picture
        return "image/x-portable-pixmap", self.picture

    @contextmanager
    def running(self, *_: object) -> Iterator[DrillGuest]:
        if self.refused:
            raise self.refused
        try:
            domain: Any = self
            yield DrillGuest(domain, Isolated("", self.has_agent, ("host devices",)), self.unread)
        finally:
            self.ended += 1


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path)


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> Boots:
    guest = Boots()
    guest.commands, guest.files = {"systemctl": ended(0, b"active\n")}, {"/etc/hostname"}

    @contextmanager
    def taken(*_: object) -> Iterator[None]:
        yield

    monkeypatch.setattr(module, "running", guest.running)
    monkeypatch.setattr(module, "left_over", lambda _host: iter(()))
    monkeypatch.setattr(module, "image_owner", lambda _connection: (64055, 64055))
    monkeypatch.setattr(module, "Bench", SimpleNamespace(taken=taken))
    return guest


def drilled(kit: Kit, guest: Boots, **options: Any) -> DrillReport:
    host: Any = SimpleNamespace(
        connection=None, places=SimpleNamespace(scratch_dir="/scratch"), require_here=lambda *_: None
    )

    def sleep(seconds: float) -> None:
        guest.now += seconds

    clocks = Clocks(lambda: guest.now, sleep, lambda: NOON)
    return drill(host, kit.repository, kit.points()[0], DrillOptions("hv1", **options), SILENT, clocks)


def failed(kit: Kit, guest: Boots, **options: Any) -> DrillFailedError:
    with pytest.raises(DrillFailedError) as caught:
        drilled(kit, guest, **options)
    assert (guest.ended, caught.value.exit_code, caught.value.kind) == (1, 1, "drill")
    (record,) = drills.every(kit.repository)
    assert record.seen == caught.value.report.seen
    assert (record.seen.success, record.seen.problem) == (False, caught.value.message)
    return caught.value


def test_a_guest_that_boots(kit: Kit, guest: Boots) -> None:
    report = drilled(kit, guest, checks=(SSH, HOSTNAME))
    assert 23 <= (report.seen.boot_seconds or 0) < 24
    assert report.seen.checks == (("service ssh", True), ("file /etc/hostname", True))
    assert (report.seen.success, report.seen.problem, report.seen.host, report.seen.time) == (True, None, "hv1", NOON)
    assert report.console == ["SeaBIOS", "web01 login:"]
    assert (report.picture or b"")[:4] == b"\x89PNG"
    assert (report.domain, report.point, report.left_out) == ("guest", kit.points()[0].id, ("host devices",))
    (record,) = drills.every(kit.repository)
    assert (record.seen, record.session) == (report.seen, kit.points()[0].session)
    assert guest.ended == 1


def test_a_line_of_the_console_is_the_sign(kit: Kit, guest: Boots) -> None:
    """Also where the guest has no agent, and where the line comes in pieces."""
    guest.has_agent, guest.answers_at = False, 1e9
    report = drilled(kit, guest, console=r"web\d+ login:")
    assert 21 <= (report.seen.boot_seconds or 0) < 22


def test_a_guest_that_never_answers(kit: Kit, guest: Boots) -> None:
    """What was seen is told; of what it printed nothing is recorded."""
    guest.answers_at = 1e9
    guest.printed[30.0] = b"\r\nKernel panic - not syncing: secret\r\n"
    error = failed(kit, guest, boot_seconds=60.0)
    assert error.message == (
        "the guest had not booted after 60 s: the guest agent does not answer: QEMU guest agent is not connected"
    )
    assert error.report.console[-1] == "Kernel panic - not syncing: secret"
    assert error.hint.endswith("web01 login: / Kernel panic - not syncing: secret")
    assert error.report.picture
    assert 60 <= guest.now < 62


def test_a_console_that_never_shows_it(kit: Kit, guest: Boots) -> None:
    error = failed(kit, guest, console="no such line", boot_seconds=60.0)
    assert error.message == 'the guest had not booted after 60 s: its console showed nothing like "no such line"'


def test_a_guest_without_any_sign(kit: Kit, guest: Boots) -> None:
    guest.has_agent = False
    error = failed(kit, guest)
    assert "no channel for a guest agent" in error.message
    assert "console in [jobs.NAME.drill]" in error.hint
    assert guest.now < 1


@pytest.mark.parametrize(
    ("what", "told"), [("gone_at", "the guest ended before it had booted"), ("paused_at", "found no space")]
)
def test_a_guest_that_ends_or_stands_still(kit: Kit, guest: Boots, what: str, told: str) -> None:
    setattr(guest, what, 5.0)
    assert told in failed(kit, guest).message
    assert guest.now < 7


def test_a_check_that_does_not_hold(kit: Kit, guest: Boots) -> None:
    """All are told, and the time to boot too."""
    guest.commands = {"systemctl": ended(3, b"failed\n")}
    error = failed(kit, guest, checks=(SSH, HOSTNAME), checks_seconds=20.0)
    assert error.message == "service ssh: is failed"
    assert error.report.seen.checks == (("service ssh", False), ("file /etc/hostname", True))
    assert error.report.seen.boot_seconds


def test_a_part_that_could_not_be_read(kit: Kit, guest: Boots) -> None:
    """It ends the drill at once, as the reason of its failure; also where the guest has booted all the same."""
    guest.unread_at = 5.0
    error = failed(kit, guest, boot_seconds=600.0)
    why = "a part of the restore point could not be read: data/x is missing"
    assert error.message == f"the drill was ended before it had booted, for {why}"
    assert "verify --read-data" in error.hint
    assert 5 <= guest.now < 6
    assert error.report.seen.boot_seconds is None


def test_a_part_that_could_not_be_read_during_the_checks(kit: Kit, guest: Boots) -> None:
    guest.unread_at = 30.0
    guest.commands = {"systemctl": ended(3, b"activating\n")}
    error = failed(kit, guest, checks=(SSH,), checks_seconds=600.0)
    assert error.message.startswith("the drill was ended during the checks, for a part of the restore point could not")
    assert 30 <= guest.now < 32


def test_a_part_that_could_not_be_read_of_a_guest_that_booted(kit: Kit, guest: Boots) -> None:
    guest.unread_at = guest.answers_at = 0.0
    error = failed(kit, guest)
    assert error.message == "it booted, but a part of the restore point could not be read: data/x is missing"


def test_a_screen_that_gives_no_picture(kit: Kit, guest: Boots) -> None:
    for nothing in (HypervisorError("no screen"), b"P6 nonsense"):
        guest.picture = nothing
        assert drilled(kit, guest).picture is None


@pytest.mark.parametrize("error", [HypervisorError("this host has no such machine"), DamageError("x is missing")])
def test_a_guest_that_cannot_start(kit: Kit, guest: Boots, error: Any) -> None:
    """It is recorded: this host cannot boot that point."""
    guest.refused = error
    with pytest.raises(DrillFailedError, match=error.message):
        drilled(kit, guest)
    assert drills.every(kit.repository)[0].seen.problem == error.message


@pytest.mark.parametrize("error", [TargetError("no space is left"), AccessError("not yours")])
def test_where_there_was_no_drill_nothing_is_recorded(kit: Kit, guest: Boots, error: Any) -> None:
    guest.refused = error
    with pytest.raises(type(error)):
        drilled(kit, guest)
    assert drills.every(kit.repository) == []


def test_an_interrupt_ends_the_guest(kit: Kit, guest: Boots, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(guest, "listen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        drilled(kit, guest)
    assert guest.ended == 1
    assert drills.every(kit.repository) == []


def test_a_key_that_reads_nothing_drills_nothing(kit: Kit, guest: Boots) -> None:
    from tests.unit.engine.test_writers import as_host, enrolled

    as_host(kit, enrolled(kit, "host1"))
    with pytest.raises(AccessError, match="may not read"):
        drilled(kit, guest)
    assert guest.ended == 0
