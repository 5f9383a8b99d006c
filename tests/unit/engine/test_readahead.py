"""When a window of a disk is made ready before it is asked for."""

from __future__ import annotations

from vmbackup.engine.serve.readahead import FIRST, ReadAhead


def ahead(reads: ReadAhead, step: int) -> int:
    """How many steps are to be made ready after a read of this one."""
    return len(reads.next(step, step)[1])


def test_who_reads_on_alone_is_read_ahead_of() -> None:
    reads = ReadAhead(enough=1, patience=4)
    assert ahead(reads, 0) == 0
    assert ahead(reads, 1) == FIRST
    assert all(reads.next(step, step)[0] for step in range(2, 9))


def test_nothing_is_ahead_for_a_while_after_all_were_at_work() -> None:
    """Else threads that read ahead keep those waiting who were asked, which then look as if they had nothing to do."""
    reads = ReadAhead(enough=1, patience=4)
    ahead(reads, 0)
    with reads:
        assert ahead(reads, 1) == 0
    assert [ahead(reads, step) > 0 for step in range(2, 7)] == [False, False, False, True, True]


def test_without_patience_it_goes_on_at_once() -> None:
    reads = ReadAhead(enough=2)
    ahead(reads, 0)
    with reads, reads:
        assert ahead(reads, 1) == 0
    assert ahead(reads, 2) > 0
