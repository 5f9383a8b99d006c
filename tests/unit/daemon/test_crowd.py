"""Twenty real processes at once for some seconds; some minutes of it: tests/torture/test_service_crowd.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.daemon.crowd import lived

SECONDS = 20.0


@pytest.mark.timeout(120)
def test_twenty_processes(tmp_path: Path) -> None:
    """Good ones, failing, crashing, hanging, deaf ones: no run lost, none overlapping, nothing left."""
    crowd = lived(tmp_path, SECONDS)
    assert crowd.most > 10
    assert any(run.outcome and run.outcome.kind == "deadline" for run in crowd.notes.ended_)
