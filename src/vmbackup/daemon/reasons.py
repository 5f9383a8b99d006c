"""Why disks are read whole, in a few words: a metric's label must not grow with every checkpoint's name."""

from collections.abc import Mapping
from typing import Any

FULL = "full"  # the disk has no earlier point, or all was asked for
SCHEDULED = "scheduled"  # reread_every
OTHER = "other"
_SENTENCES = (  # what stands in the sentences of hypervisor/plan.py, disks.py and engine/backup/run.py
    ("has no dirty bitmap", "untracked"),
    ("and its bitmaps are gone from the domain", "checkpoint_gone"),
    ("is missing or broken", "bitmap_broken"),
    ("does not cover the disk", "not_covered"),
    ("the disk shrank from", "shrunk"),
    ("it is another image than in", "other_image"),
    ("is another file than in", "other_image"),
    ("a snapshot was made since", "snapshot"),
    ("its bitmap missed a change", "bitmap_wrong"),
    ("cannot be built on", "damaged"),
    ("chunk size was changed", "chunk_size"),
    ("the repository is older than this host", "repository_older"),
    ("came from another repository", "other_repository"),
    ("names no checkpoint", "no_checkpoint"),
    ("a restore in place to", "half_restored"),
)
REASONS = (FULL, SCHEDULED, *dict.fromkeys(label for _, label in _SENTENCES), OTHER)


def whole_read(disk: Mapping[str, Any]) -> str | None:
    """The label for a disk of `backup --json`; None where it was not read whole."""
    mode, reason = disk.get("mode"), disk.get("reason")
    if mode == "full":
        return FULL
    if mode != "reread":
        return None
    if reason == SCHEDULED:
        return SCHEDULED
    return next((label for words, label in _SENTENCES if words in str(reason)), OTHER)
