"""Some minutes of twenty real processes at once, under the dispatcher of the service."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.daemon.crowd import lived

MINUTES = float(os.environ.get("MINUTES", "5"))

pytestmark = [pytest.mark.torture, pytest.mark.timeout(MINUTES * 60 + 300)]


def test_twenty_processes_for_minutes(tmp_path: Path) -> None:
    """No run is lost, none overlaps another of its domain, no thread, file or process is left."""
    assert lived(tmp_path, MINUTES * 60).most > 15
