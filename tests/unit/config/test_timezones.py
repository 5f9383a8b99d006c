"""Time zones are known wherever vmbackup is installed."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("zone", ["Europe/Berlin", "US/Eastern"])  # Debian has the second in tzdata-legacy only
def test_zones_are_known_where_the_system_knows_none(zone: str) -> None:
    """A container may lack the system's database: the dependency tzdata is used then."""
    text = f'jobs.nightly = {{ domains = ["*"], timezone = "{zone}" }}'
    program = f"from vmbackup.config.load import parse; print(parse({text!r}, 'file').jobs['nightly'].timezone)"
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONTZPATH": ""}, capture_output=True, text=True
    )
    assert (done.stdout.strip(), done.stderr) == (zone, "")
