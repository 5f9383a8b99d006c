"""A program with a repository of its own, and guests that end with the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.session import Lab
from tests.real.boot.kit import BootedGuest, Rig
from tests.real.engine.program import Program


@pytest.fixture
def rig(lab: Lab, work_dir: Path, scratch_dir: Path) -> Rig:
    """With a job that means all guests of this lab: others may be at work on the machine."""
    program = Program.make(work_dir, scratch_dir)
    config = work_dir / "config.toml"
    config.write_text(config.read_text() + f'[jobs.all]\ndomains = ["{lab.prefix}*"]\n')
    return Rig(lab, program)


@pytest.fixture
def boot(rig: Rig) -> Iterator[Callable[..., BootedGuest]]:
    made: list[BootedGuest] = []

    def make(point: str, *options: str) -> BootedGuest:
        made.append(rig.boot(point, *options))
        return made[-1]

    yield make
    for guest in made:
        guest.remove()
    assert rig.left() == []
