"""What is told to systemd, read from a real datagram socket."""

import os
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmbackup.daemon.notify import Notifier


class Systemd:
    """The other end."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._socket.settimeout(5)
        self.name = address.replace("\0", "@")

    def heard(self) -> str:
        return self._socket.recv(65536).decode()

    def silent(self) -> bool:
        self._socket.setblocking(False)
        try:
            self._socket.recv(1)
        except BlockingIOError:
            return True
        return False

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Systemd]:
    name = str(tmp_path / "notify") if request.param == "path" else f"\0vmbackup-test-{secrets.token_hex(8)}"
    listening = Systemd(name)
    yield listening
    listening.close()


def test_each_message(systemd: Systemd) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": systemd.name})
    notifier.ready()
    assert systemd.heard() == "READY=1"
    notifier.status("web01 43 % 118 MB/s, next 02:00")
    assert systemd.heard() == "STATUS=web01 43 % 118 MB/s, next 02:00"
    notifier.watchdog()
    assert systemd.heard() == "WATCHDOG=1"
    notifier.stopping()
    assert systemd.heard() == "STOPPING=1"
    notifier.extend(12.5)
    assert systemd.heard() == "EXTEND_TIMEOUT_USEC=12500000"


def test_a_reload_says_when_it_began(systemd: Systemd) -> None:
    """On the clock that systemd compares it with, in the message that tells of the reload."""
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    Notifier.from_environment({"NOTIFY_SOCKET": systemd.name}).reloading()
    first, second = systemd.heard().split("\n")
    assert first == "RELOADING=1"
    assert before <= int(second.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


def test_a_status_is_one_line(systemd: Systemd) -> None:
    """No name of a guest can say anything else to systemd."""
    Notifier(_bound(systemd)).status("web\n01\r\x00STOPPING=1 \ud800" + "x" * 600)
    heard = systemd.heard()
    assert heard.startswith("STATUS=web 01  STOPPING=1 ")
    assert "\n" not in heard
    assert len(heard) <= 507


def test_without_systemd_nothing_is_sent(systemd: Systemd) -> None:
    for environ in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}):
        notifier = Notifier.from_environment({**environ, "WATCHDOG_USEC": "1000000"})
        assert notifier.watchdog_interval is None
        notifier.ready()
    assert systemd.silent()


def test_a_systemd_that_is_gone_ends_nothing(tmp_path: Path) -> None:
    Notifier.from_environment({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).ready()


@pytest.mark.parametrize(
    ("usec", "pid", "interval"),
    [
        ("60000000", None, 30.0),
        ("60000000", "4711", 30.0),
        ("60000000", "4712", None),  # meant for another process
        ("0", None, None),
        ("soon", None, None),
        ("", None, None),
    ],
)
def test_the_watchdog_is_fed_twice_as_often_as_needed(usec: str, pid: str | None, interval: float | None) -> None:
    environ = {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": usec}
    if pid is not None:
        environ["WATCHDOG_PID"] = pid
    assert Notifier.from_environment(environ, pid=4711).watchdog_interval == interval


def test_the_programs_that_are_run_are_not_told_of_it() -> None:
    """A hook or a run must not speak to systemd in our name."""
    environ = {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "1", "WATCHDOG_PID": str(os.getpid()), "PATH": "/bin"}
    Notifier.from_environment(environ)
    assert environ == {"PATH": "/bin"}


def _bound(systemd: Systemd) -> str:
    return systemd.name.replace("@", "\0", 1) if systemd.name.startswith("@") else systemd.name
