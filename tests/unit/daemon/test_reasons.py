"""Why disks are read whole, as labels: what the sentences of the engine become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import vmbackup
from vmbackup.daemon.reasons import _SENTENCES, REASONS, whole_read
from vmbackup.hypervisor.plan import broken_reason

CASES: list[tuple[dict[str, Any], str | None]] = [
    ({"mode": "incremental", "reason": None}, None),
    ({"mode": "full", "reason": None}, "full"),
    ({"mode": "reread", "reason": "scheduled"}, "scheduled"),
    ({"mode": "reread", "reason": broken_reason("vmbackup-1a2b3c4d-20261128T020000Z-0f0f")}, "bitmap_broken"),
    ({"mode": "reread", "reason": "a raw image has no dirty bitmap"}, "untracked"),
    ({"mode": "reread", "reason": "something new"}, "other"),
    ({"mode": "reread", "reason": None}, "other"),
    ({}, None),
]


@pytest.mark.parametrize(("disk", "label"), CASES)
def test_labels(disk: dict[str, Any], label: str | None) -> None:
    assert whole_read(disk) == label
    assert label is None or label in REASONS


@pytest.mark.parametrize("words", [words for words, _ in _SENTENCES])
def test_the_sentences_are_those_of_the_engine(words: str) -> None:
    """Whoever changes a sentence there is sent here."""
    root = Path(vmbackup.__file__).parent
    sources = [*(root / "hypervisor").glob("*.py"), *(root / "engine").rglob("*.py")]
    assert any(words in source.read_text() for source in sources)


def test_each_label_stands_on_the_page() -> None:
    page = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
    paragraph = page[page.index("`vmbackup_full_read_total` counts") :].partition("\n\n")[0]
    assert [label for label in REASONS if f"`{label}`" not in paragraph] == []
