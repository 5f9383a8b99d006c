"""What is known of libvirt and of repositories, through looks that go well, fail and hang."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from vmbackup.daemon import outlook
from vmbackup.daemon.outlook import LookError, Outlook
from vmbackup.errors import HypervisorError

WEB, DB = "11111111-1111-1111-1111-111111111111", "22222222-2222-2222-2222-222222222222"


class Memory(dict[str, str]):
    def remember(self, name: str, value: str) -> None:
        self[name] = value

    def recall(self, name: str) -> str | None:
        return self.get(name)


def point(number: int, **more: object) -> dict[str, Any]:
    return {
        "id": f"2026-11-2{number}T02:00:00Z-0000000{number}",
        "time": f"2026-11-2{number}T02:00:00+00:00",
        "status": "success",
        "consistency": "filesystem",
        "freeze_seconds": 0.05,
        "quiesce_note": None,
        "copied_from": None,
        **more,
    }


def info(*guests: Mapping[str, Any], sizes: bool = True) -> dict[str, Any]:
    return {
        "repository": {"name": "local", "id": "00" * 16, "url": "/r", "points": 3, "guests": 1, "damaged_objects": 1,
                       "quarantined": 0},
        "sizes": {"bytes": 1000, "objects": 7} if sizes else None,
        "verified": {"time": "2026-11-22T00:00:00+00:00", "domains": {"web": "2026-11-22T00:00:00+00:00"}},
        "guests": list(guests),
    }  # fmt: skip


class World:
    """Answers for libvirt and `info`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.memory = Memory()
        self.now = 1e9
        self.domains: Mapping[str, str] | Exception = {"web": WEB}
        self.info: dict[str, Any] | Exception = info(guest("web", WEB, 3, 2))
        self.asked: list[list[str]] = []
        self.during: Callable[[], None] = lambda: None
        monkeypatch.setattr(outlook, "run_json", self._run)

    def outlook(self) -> Outlook:
        return Outlook(self._domains, lambda: b"", self.memory, lambda: self.now)

    def _domains(self) -> Mapping[str, str]:
        if isinstance(self.domains, Exception):
            raise self.domains
        return self.domains

    def _run(self, config: bytes, arguments: list[str], within: float, begun: object) -> dict[str, Any]:
        self.asked.append(list(arguments))
        self.during()
        if isinstance(self.info, Exception):
            raise self.info
        return self.info


def guest(domain: str, uuid: str, *days: int) -> dict[str, Any]:
    drill = {"last": None, "last_success": None}
    points = [point(day) for day in days]
    return {"domain": domain, "domain_uuid": uuid, "host": "hv1", "drill": drill, "points": points}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_a_guest_is_known_by_its_uuid(world: World) -> None:
    """Two hosts that share a repository may both have a `web`."""
    world.info = info(guest("web", DB, 9), guest("web", WEB, 3, 2))
    seen = world.outlook()
    seen.look_at_libvirt()
    seen.look_at_store("local", "/r")
    found = seen.seen("local", "web")
    assert found is not None
    assert found.uuid == WEB
    assert found.last_point == point(3)["id"]
    assert len(found.times) == 2
    assert found.quiesce_ok


def test_a_failed_look_keeps_what_was_seen(world: World) -> None:
    seen = world.outlook()
    seen.look_at_libvirt()
    seen.look_at_store("local", "/r")
    before = seen.seen("local", "web")
    world.info = LookError("the bucket is gone")
    store = seen.look_at_store("local", "/r")
    assert (store.up, store.error) == (False, "the bucket is gone")
    assert seen.seen("local", "web") == before
    assert (store.bytes, store.objects) == (1000, 7)


def test_a_former_life_is_remembered(world: World) -> None:
    """A service that starts while its repository is out of reach still knows the ages of its guests."""
    first = world.outlook()
    first.look_at_libvirt()
    first.look_at_store("local", "/r")
    world.info, world.domains = LookError("no route"), HypervisorError("no libvirt")
    second = world.outlook()
    assert second.store("local").up is None
    second.look_at_libvirt()
    second.look_at_store("local", "/r")
    assert second.domains() == {"web": WEB}
    assert second.seen("local", "web") == first.seen("local", "web")
    assert second.store("local").up is False


def test_nonsense_in_memory_counts_for_nothing(world: World) -> None:
    world.memory["store/local"] = '{"guests": 5}'
    assert world.outlook().store("local").guests == {}


def test_sizes_are_counted_once_an_hour(world: World) -> None:
    seen = world.outlook()
    seen.look_at_store("local", "/r")
    world.info = info(sizes=False)
    world.now += 600
    assert seen.look_at_store("local", "/r").bytes == 1000
    seen.forget_sizes("local")
    world.info = info()
    seen.look_at_store("local", "/r")
    assert ["--sizes" in words for words in world.asked] == [True, False, True]


def test_a_new_point_is_known_at_once(world: World) -> None:
    seen = world.outlook()
    seen.look_at_libvirt()
    seen.look_at_store("local", "/r")
    seen.add_point("local", point(4, domain="web", domain_uuid=WEB, consistency="crash"))
    found = seen.seen("local", "web")
    assert found is not None
    assert found.last_point == point(4)["id"]
    assert len(found.times) == 3
    assert not found.quiesce_ok


def test_a_point_that_is_made_during_a_look_is_not_lost(world: World) -> None:
    """The look read the repository before it was committed, and ends after it was told of."""
    seen = world.outlook()
    seen.look_at_libvirt()
    seen.look_at_store("local", "/r")
    world.during = lambda: seen.add_point("local", point(4, domain="web", domain_uuid=WEB))
    for _ in range(2):  # the second look finds it, and counts it once
        seen.look_at_store("local", "/r")
        found = seen.seen("local", "web")
        assert found is not None
        assert (found.last_point, len(found.times)) == (point(4)["id"], 3)
        world.info, world.during = info(guest("web", WEB, 4, 3, 2)), lambda: None


def test_the_last_good_drill_is_known(world: World) -> None:
    """To a service that has just begun, and after a backup, whose point was never drilled."""
    drilled = guest("web", WEB, 3)
    good = {"time": "2026-11-22T06:00:00+00:00", "boot_seconds": 21.5}
    good["checks"] = [{"name": "service ssh", "success": True}]
    drilled["drill"] = {"last": {"time": "2026-11-23T06:00:00+00:00"}, "last_success": good}
    world.info = info(drilled)
    seen = world.outlook()
    seen.look_at_libvirt()
    seen.look_at_store("local", "/r")
    assert told(seen) == (day(22, 6), 21.5, ("service ssh",))
    seen.add_point("local", {"domain": "web", "domain_uuid": WEB, **point(5)})
    assert told(seen) == (day(22, 6), 21.5, ("service ssh",))
    again = world.outlook()
    again.look_at_libvirt()
    assert told(again) == (day(22, 6), 21.5, ("service ssh",))


def told(outlook: Outlook) -> tuple[float, float | None, tuple[str, ...]] | None:
    found = outlook.seen("local", "web")
    return (found.drilled, found.boot_seconds, found.checks) if found else None


def day(number: int, hour: int) -> float:
    return datetime(2026, 11, number, hour, tzinfo=UTC).timestamp()


def test_a_damaged_point_is_no_good_one(world: World) -> None:
    """The age is that of the newest that can be restored; all of them are in the calendar."""
    spoiled = guest("web", WEB, 4, 3, 2)
    spoiled["points"][0]["damaged"] = True
    world.info = info(spoiled)
    seen = world.outlook()
    seen.look_at_libvirt()
    seen.look_at_store("local", "/r")
    found = seen.seen("local", "web")
    assert found is not None
    assert (found.last, found.last_point) == (found.times[1], point(3)["id"])
    for one in spoiled["points"]:
        one["damaged"] = True
    seen.look_at_store("local", "/r")
    found = seen.seen("local", "web")
    assert found is not None
    assert (found.last, found.last_point, len(found.times)) == (0.0, None, 3)


def test_who_comes_while_another_asks_gets_the_same_answer(world: World) -> None:
    """Schedules that come due in the same second: none goes on with the domains of five minutes ago."""
    free, entered = threading.Event(), threading.Event()

    def slow() -> Mapping[str, str]:
        entered.set()
        free.wait(60)
        return {"web": WEB, "new": DB}

    seen = Outlook(slow, lambda: b"", world.memory)
    first = threading.Thread(target=seen.look_at_libvirt)
    first.start()
    assert entered.wait(60)
    answers: list[tuple[bool, dict[str, str]]] = []
    second = threading.Thread(target=lambda: answers.append((seen.look_at_libvirt(), seen.domains())))
    second.start()
    free.set()
    first.join()
    second.join()
    assert answers == [(True, {"web": WEB, "new": DB})]
    assert seen.libvirt_error is None


def test_a_libvirt_that_hangs_is_told_and_not_asked_twice(world: World) -> None:
    free, entered = threading.Event(), threading.Semaphore(0)

    def hanging() -> Mapping[str, str]:
        entered.release()
        free.wait(60)
        return {"web": WEB}

    seen = Outlook(hanging, lambda: b"", world.memory)
    assert not seen.look_at_libvirt(within=0.05)
    assert "has not answered" in (seen.libvirt_error or "")
    assert not seen.look_at_libvirt(within=0.05)  # not asked again
    assert entered.acquire(timeout=60)
    assert not entered.acquire(blocking=False)
    free.set()
    deadline = threading.Event()
    while not seen.look_at_libvirt(within=5):
        assert not deadline.wait(0.01)
    assert seen.libvirt_error is None


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file whose program is run instead of vmbackup's."""
    file = tmp_path / "program.py"
    monkeypatch.setattr(outlook, "PROGRAM", (sys.executable, str(file)))
    return file


def test_a_look_is_given_the_configuration_in_force(program: Path) -> None:
    program.write_text(
        "import json, sys\nprint(json.dumps({'config': open(sys.argv[2]).read(), 'rest': sys.argv[3:]}))\n"
    )
    assert outlook.run_json(b"a = 1", ["info"], 20) == {"config": "a = 1", "rest": ["--json", "info"]}


@pytest.mark.parametrize(
    ("body", "within", "told"),
    [
        ("import time; time.sleep(60)", 1, "has not answered"),
        ("print('{\"error\": {\"message\": \"there is no bucket\"}}'); raise SystemExit(5)", 20, "there is no bucket"),
        ("raise SystemExit(9)", 20, "ended with 9"),
    ],
)
def test_a_failed_look_is_one_sentence(program: Path, body: str, within: float, told: str) -> None:
    program.write_text(body)
    with pytest.raises(LookError, match=told):
        outlook.run_json(b"", ["info"], within)


def test_a_look_that_hangs_is_ended_with_the_service(program: Path) -> None:
    """Its process must not write to folders of a service that has stopped."""
    program.write_text("import time\nprint('x', flush=True)\ntime.sleep(60)\n")
    seen = outlook.Outlook(dict, lambda: b"", Memory())
    looking = threading.Thread(target=seen.look_at_store, args=("local", "/r"))
    looking.start()
    deadline = time.monotonic() + 20
    while looking.is_alive() and time.monotonic() < deadline:
        seen.end_look()
        looking.join(0.1)
    assert not looking.is_alive()
    assert not seen.store("local").up
