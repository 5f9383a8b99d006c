"""More extents than one block-status reply of QEMU holds (131,072), in the allocation and in the bitmap."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.lab.disk import Disk, MiB
from tests.lab.domain import Workhorse
from tests.real.engine.evolution import seed_of
from tests.real.engine.kit import Kit, same

pytestmark = pytest.mark.real
SEED = 131072
PIECES = 66_000  # pieces and gaps in turn: more than twice that many extents
PIECE = 4096
SECOND = 520 * MiB  # where the second lot of pieces begins
SCATTERED = 2000


@pytest.mark.timeout(400)
def test_more_extents_than_a_reply_holds(make_domain: Callable[..., Workhorse], kit: Kit) -> None:
    """A full over 132,000 extents, an incremental over as many dirty ones, and one of scattered changes come back."""
    chance = random.Random(seed_of(SEED))
    horse = make_domain(Disk("vda", size=2 * SECOND, cluster_size=PIECE))
    horse.fragment("vda", PIECES)
    points = [kit.backup(horse)]
    copies = [horse.copy("vda")]

    horse.fragment("vda", PIECES, offset=SECOND)
    points.append(kit.backup(horse))
    copies.append(horse.copy("vda"))

    pieces = chance.sample(range(2 * SECOND // PIECE), SCATTERED)
    changes = (horse.zero, horse.zero_unmap, horse.discard)
    for number, piece in enumerate(pieces):  # one connection to the monitor for all
        if number % 2:
            horse.write("vda", piece * PIECE, PIECE, 1 + number % 255)
        else:
            chance.choice(changes)("vda", piece * PIECE, PIECE)
    points.append(kit.backup(horse))
    copies.append(horse.copy("vda"))

    assert [p.disks[0].mode for p in points] == ["full", "incremental", "incremental"]
    assert points[1].disks[0].changed_bytes < SECOND + 64 * MiB
    for at in chance.sample(range(3), 3):
        (file,) = kit.restore(points[at].id, "qcow2" if at == 1 else "raw").files
        same(file.path, copies[at])
        file.path.unlink()
