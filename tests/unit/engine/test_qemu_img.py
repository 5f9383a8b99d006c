"""QEMU's tools, where they fail through no fault of what they were asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmbackup.engine.images.qemu_img import run_tool
from vmbackup.errors import TargetError

CPU = "Unable to get accurate CPU usage"


def tool(folder: Path, failures: int, words: str) -> list[str]:
    """A program that fails so many times, and counts its runs."""
    path = folder / "tool"
    count = f"echo >>{folder}/runs; n=$(wc -l <{folder}/runs)"
    path.write_text(f"#!/bin/sh\n{count}\n[ $n -gt {failures} ] || {{ echo 'qemu-img: x: {words}' >&2; exit 1; }}\n")
    path.chmod(0o755)
    return [str(path)]


def runs(folder: Path) -> int:
    return len((folder / "runs").read_text())


def test_a_key_that_was_made_too_fast_is_made_again(tmp_path: Path) -> None:
    """LUKS: QEMU 7.2 to 9.2 measure how fast the machine is, and now and then find that it took no time."""
    run_tool(tool(tmp_path, 3, CPU), tmp_path / "x")
    assert runs(tmp_path) == 4


@pytest.mark.parametrize(("words", "times"), [(CPU, 20), ("No space left on device", 1)])
def test_what_goes_on_failing_is_told(tmp_path: Path, words: str, times: int) -> None:
    with pytest.raises(TargetError):
        run_tool(tool(tmp_path, 1000, words), tmp_path / "x")
    assert runs(tmp_path) == times
