from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.engine.kit import Kit, kits
from vmbackup.hypervisor.live import job


@pytest.fixture(autouse=True)
def _short_seal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of anything but the seal: of hundreds of small runs its waiting would be most of the time."""
    if not request.module.__name__.endswith("test_seal"):
        monkeypatch.setattr(job, "PROOF_WAIT", 0.05)


@pytest.fixture
def kit(work_dir: Path, scratch_dir: Path) -> Iterator[Kit]:
    yield from kits(work_dir, scratch_dir)
