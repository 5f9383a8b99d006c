"""`--progress-fd`: progress as lines of JSON in a pipe, that nobody waits for; and the end with who started it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vmbackup.cli.wire import Wire, end_with_parent
from vmbackup.errors import UsageError
from vmbackup.repository import Repository, frames
from vmbackup.repository.keys import Secret
from vmbackup.repository.run import Run as WriterRun
from vmbackup.repository.trust import Trust
from vmbackup.storage_backends import open_store

from .conftest import Run

# Starts a command and waits, as the service does; its own end is the test's to bring about.
_STARTER = """
import subprocess, sys
subprocess.Popen(sys.argv[2:], pass_fds=[int(sys.argv[1])])
print("started", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    os.set_blocking(read, False)
    yield read, write
    for fd in (read, write):
        try:
            os.close(fd)
        except OSError:
            continue


def lines(fd: int) -> list[dict[str, Any]]:
    """What lies in the pipe."""
    try:
        return [json.loads(line) for line in os.read(fd, 1 << 20).splitlines()]
    except BlockingIOError:
        return []


def test_tasks_and_notes(pipe: tuple[int, int]) -> None:
    wire = Wire(pipe[1])
    wire.start("web1", 100)
    wire.note("half \x07way \u20ac")
    wire.advance("web1", 60)
    wire.advance("never started", 1)
    wire.advance("web1", 40)
    wire.finish("web1")
    wire.close()
    told = lines(pipe[0])
    assert {"note": "half \x07way \u20ac"} in told
    assert told[-1] == {"task": "web1", "done_bytes": 100, "total_bytes": 100}


def test_no_more_than_four_lines_a_second(pipe: tuple[int, int]) -> None:
    wire = Wire(pipe[1])
    wire.start("web1", None)
    began = time.monotonic()
    while time.monotonic() < began + 1.1:
        wire.advance("web1", 1)
    wire.close()
    quarters = (time.monotonic() - began) / 0.25
    told = lines(pipe[0])
    assert 3 <= len(told) <= quarters + 2  # one at once, one each quarter of a second, one at the end
    assert told[-1]["done_bytes"] > told[-2]["done_bytes"] > 0


def test_what_stands_still_is_not_repeated(pipe: tuple[int, int]) -> None:
    wire = Wire(pipe[1])
    wire.start("web1", 5)
    time.sleep(0.6)
    wire.close()
    assert lines(pipe[0]) == [{"task": "web1", "done_bytes": 0, "total_bytes": 5}]


def test_a_full_pipe_drops_lines_and_stops_nothing(pipe: tuple[int, int]) -> None:
    """A reader that does not read holds nothing up; once it reads, whole lines come again."""
    wire = Wire(pipe[1])
    started = time.monotonic()
    for number in range(5000):
        wire.note(f"{number} " + "\U0001f600" * 1000)
    assert time.monotonic() - started < 5
    first = lines(pipe[0])
    assert 0 < len(first) < 5000
    wire.note("again")
    assert lines(pipe[0]) == [{"note": "again"}]
    wire.close()


def test_a_closed_pipe_stops_nothing(pipe: tuple[int, int]) -> None:
    wire = Wire(pipe[1])
    os.close(pipe[0])
    wire.start("web1", 1)
    wire.note("nobody reads this")
    wire.tell()
    os.close(pipe[1])
    wire.note("nor this")
    wire.close()


def test_a_descriptor_that_is_none_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="no file descriptor 9999"):
        Wire(9999)


def test_whose_parent_is_gone_is_interrupted(monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, int]) -> None:
    """It died before the kernel was asked: another process is the parent after, or init is and nobody reads."""
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: None)
    parents = iter([7, 7, 7, 1, 1, 1, 1, 1])
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    end_with_parent(pipe[1])
    with pytest.raises(KeyboardInterrupt):
        end_with_parent(pipe[1])
    end_with_parent(pipe[1])  # init itself has started it
    os.close(pipe[0])
    with pytest.raises(KeyboardInterrupt):
        end_with_parent(pipe[1])


@pytest.fixture
def waiting(repository: Path, config_file: Path, tmp_path: Path, pipe: tuple[int, int]) -> list[str]:
    """A command that takes minutes: a prune that waits for the session of another host."""
    secret = Secret.passphrase((tmp_path / "secrets/passphrase").read_text().strip())
    store = open_store(str(repository))
    opened = Repository.open(store, secret, Trust(tmp_path / "state/repositories"))
    first = WriterRun.open(opened, opened.lineage("libvirt", "guest"), "another host")
    ended = bytes(16)
    store.put(first.lineage.point(ended), frames.preamble(b"ABRT"))
    store.put(first.lineage.pack("data", ended, 0), b"to be collected")
    program = [sys.executable, "-P", "-m", "vmbackup.cli", "--config", str(config_file)]
    return [*program, "--json", "--progress-fd", str(pipe[1]), "prune"]


def test_a_process_ends_with_who_started_it(waiting: list[str], pipe: tuple[int, int]) -> None:
    """SIGKILL of the service interrupts its runs, in good order."""
    starter = subprocess.Popen(
        [sys.executable, "-c", _STARTER, str(pipe[1]), *waiting],
        pass_fds=[pipe[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with starter:
        assert starter.stdout
        assert starter.stdout.readline() == "started\n"
        os.close(pipe[1])
        os.set_blocking(pipe[0], True)
        with open(pipe[0], encoding="utf-8", closefd=False) as told:
            assert any("waiting for 1 running backups" in line for line in told)
            starter.kill()
            printed = starter.stdout.read()  # to the end of who holds it: the command
            assert json.loads(printed)["error"]["kind"] == "interrupted"
            assert not [line for line in told if "note" in line]


def test_with_it_nothing_is_told_on_standard_error(waiting: list[str], pipe: tuple[int, int]) -> None:
    done = subprocess.run([*waiting, "--wait", "1s"], pass_fds=[pipe[1]], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert {"note": "waiting for 1 running backups to end"} in lines(pipe[0])


def test_the_configuration_may_come_as_a_file_in_memory(config_file: Path, repository: Path) -> None:
    """As the service gives it: read by the number of a descriptor, mistakes told under that name."""
    file = os.memfd_create("config")
    try:
        os.write(file, config_file.read_bytes())
        program = [sys.executable, "-P", "-m", "vmbackup.cli", "--config", f"/dev/fd/{file}", "--json", "list"]
        done = subprocess.run(program, pass_fds=[file], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        os.ftruncate(file, 0)
        os.pwrite(file, b"[jobs]\n[nonsense]\n", 0)
        done = subprocess.run(program, pass_fds=[file], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert f"/dev/fd/{file}:2" in json.loads(done.stdout)["error"]["message"]
    finally:
        os.close(file)


def test_a_wrong_number_is_told(run: Run, repository: Path) -> None:
    for wrong in ("0", "x", "99999999999999999999"):
        assert run("--progress-fd", wrong, "verify").code == 2
