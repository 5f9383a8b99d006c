from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.engine.kit import Kit, kits


@pytest.fixture
def kit(work_dir: Path, scratch_dir: Path) -> Iterator[Kit]:
    yield from kits(work_dir, scratch_dir)
