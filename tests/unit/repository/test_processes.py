"""Whether a process is still the one that it was."""

from __future__ import annotations

import subprocess
import time

from vmbackup.repository.processes import is_alive, process_mark


def test_this_one() -> None:
    assert process_mark().count(":") == 2
    assert is_alive(process_mark())


def test_another_one_of_the_same_number() -> None:
    assert not is_alive(process_mark()[:-1] + "x")
    assert not is_alive("")


def test_one_whose_end_nobody_took_in() -> None:
    """It runs no more, however long it stays in the list of processes."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        mark = process_mark(process.pid)
        assert is_alive(mark)
        process.kill()
        deadline = time.monotonic() + 60
        while is_alive(mark):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert process.returncode is None
