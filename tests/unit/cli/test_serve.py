"""`vmbackup serve`: its ready line, its socket, its end, its warnings."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Run
from tests.unit.cli.serving import Served, passphrase_beside
from tests.unit.engine.kit import RamKit
from vmbackup.nbd import ConnectFailed, NbdClient
from vmbackup.nbd.protocol import BASE_ALLOCATION

SIZE = 300_000

Serve = Callable[..., Served]


@pytest.fixture
def kit(tmp_path: Path, config_file: Path) -> RamKit:
    made = RamKit(tmp_path, {"vda": SIZE, "sdb": SIZE})
    made.disk().write(0, os.urandom(100_000))
    made.disk("sdb").write(9, b"other")
    made.backup()
    passphrase_beside(tmp_path)
    return made


@pytest.fixture
def serve(config_file: Path, kit: RamKit) -> Iterator[Serve]:
    running: list[Served] = []

    def start(*args: str) -> Served:
        running.append(Served(config_file, *args))
        return running[-1]

    yield start
    for served in running:
        if served.process.poll() is None:
            served.process.kill()
        served.process.communicate()


def contents(client: NbdClient) -> bytes:
    data = bytearray(client.size)
    client.read_into(0, memoryview(data))
    client.close()
    return bytes(data)


@pytest.mark.parametrize("json_option", [(), ("--json",)])
def test_a_line_tells_where_clients_connect(
    serve: Serve, kit: RamKit, tmp_path: Path, json_option: tuple[str, ...]
) -> None:
    """With --json or without, it is the first line of standard output and the only one; SIGTERM ends with 0."""
    path = tmp_path / "s"
    served = serve("guest@latest", "--socket", str(path), *json_option)
    (point,) = kit.points()
    assert served.ready["ready"] is True
    assert served.ready["address"] == str(path)
    assert served.ready["exports"] == ["sdb", "vda"]
    assert served.ready["point"] == point.id
    assert path.stat().st_mode & 0o777 == 0o600
    for target, data in kit.kept[point.id].items():
        client = NbdClient.connect(str(path), target, contexts=[BASE_ALLOCATION])
        assert client.block_status(0, client.size)
        assert contents(client) == data
    code, out, err = served.stop()
    assert (code, out) == (0, "")
    assert not path.exists()
    assert bool(err) is not bool(json_option)


@pytest.mark.parametrize(("options", "held"), [((), 128 << 20), (("--cache", "3MiB"), 3 << 20)])
def test_the_cache_holds_what_was_told(serve: Serve, options: tuple[str, ...], held: int) -> None:
    """The ready line tells what the cache itself was made with; a bare domain is its newest point."""
    served = serve("guest", *options)
    assert served.ready["cache_bytes"] == held
    assert served.stop()[0] == 0


def test_it_serves_at_a_free_port_and_ends_with_connections_open(serve: Serve, kit: RamKit) -> None:
    served = serve("guest@latest", "--listen", "127.0.0.1:0")
    host, _, port = served.ready["address"].rpartition(":")
    client = NbdClient.connect((host, int(port)), "sdb")
    assert contents(NbdClient.connect((host, int(port)), "vda"))[:10] == bytes(kit.disk().data[:10])
    assert served.stop(signal.SIGINT)[0] == 0
    client.close()
    with pytest.raises(ConnectFailed):
        NbdClient.connect((host, int(port)), "vda")


def test_without_an_address_the_socket_is_in_a_folder_of_its_own(serve: Serve) -> None:
    served = serve("guest@latest")
    path = Path(served.ready["address"])
    assert path.is_socket()
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert served.stop()[0] == 0
    assert not path.parent.exists()


def test_a_socket_that_a_killed_server_left_is_replaced_and_one_in_use_is_not(
    serve: Serve, kit: RamKit, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    first = serve("guest@latest", "--socket", str(path))
    first.process.kill()
    first.process.wait()
    assert path.is_socket()
    second = serve("guest@latest", "--socket", str(path))
    assert second.ready
    third = serve("guest@latest", "--socket", str(path), "--json")
    third.process.wait(30)
    assert third.process.returncode == 1
    assert second.stop()[0] == 0


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["nobody@latest"], 5, "there is no restore point"),
        (["guest@latest", "--socket", "x", "--listen", "y"], 2, "exclude each other"),
        (["guest@latest", "--listen", "127.0.0.1:port"], 2, "'port' is no port"),
        (["guest@latest", "--listen", "::1:10809"], 2, "in brackets"),
        (["guest@latest", "--listen", "192.0.2.1:0"], 1, "cannot listen at 192.0.2.1:0"),
        (["guest@latest", "--socket", "/nowhere/at/all"], 1, "cannot listen at /nowhere/at/all: No such file"),
        (["guest@latest", "--tls-cert", "/nowhere"], 2, "both --tls-cert and --tls-key"),
        (["guest@latest", "--tls-cert", "/nowhere", "--tls-key", "/nowhere"], 2, "cannot read /nowhere"),
        (["guest@latest", "--tls-cert", "/dev/null", "--tls-key", "/nowhere"], 2, "cannot read /nowhere: No such file"),
        (["guest@latest", "--cache", "much"], 2, "'much' is not a size"),
    ],
)
def test_what_cannot_be_is_said(run: Run, kit: RamKit, args: list[str], code: int, said: str) -> None:
    result = run("serve", *args)
    assert result.code == code
    assert said in result.err
    assert result.out == ""


def test_listening_to_the_world_is_warned_of(serve: Serve) -> None:
    _, _, err = serve("guest@latest", "--listen", "0.0.0.0:0").stop()
    assert "is open: who reaches it reads these disks, and the network sees them in plain text" in err
    _, _, err = serve("guest@latest", "--listen", "127.0.0.1:0").stop()
    assert "warning" not in err
