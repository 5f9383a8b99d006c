"""Peak memory of a backup does not grow with the disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LIMIT = 300_000_000
SIZE = int(os.environ.get("VMBACKUP_SYNTHETIC_BYTES", str(4 << 40)))


@pytest.mark.torture
@pytest.mark.timeout(6 * 3600)
def test_synthetic_data(tmp_path: Path) -> None:
    """4 TiB (VMBACKUP_SYNTHETIC_BYTES) of new chunks take less than 300 MB."""
    command = [sys.executable, "-m", "tests.torture.synthetic", str(SIZE), str(tmp_path)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    print(done.stdout)
    found = json.loads(done.stdout)
    assert found["read_bytes"] == SIZE
    assert found["stored_bytes"] > SIZE // 8
    assert found["partials"] > 0
    assert found["peak_bytes"] < LIMIT
