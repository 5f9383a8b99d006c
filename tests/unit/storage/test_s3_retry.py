"""How long a request is repeated: by a clock of the test's own."""

from vmbackup.storage_backends.s3_retry import FIRST_PATIENCE, Patience


class _Time:
    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def _patience(seconds: float, time: _Time, chance: float = 1.0) -> Patience:
    return Patience(seconds, lambda: time.now, time.sleep, lambda: chance)


def test_a_server_that_has_answered_is_waited_for() -> None:
    """Longer each time, 20 s at most, up to the limit and not beyond."""
    time = _Time()
    patience = _patience(100.0, time)
    patience.answered = True
    trial = patience.trial()
    while trial.wait():
        assert time.now <= 100
    assert time.now == 100
    assert time.slept[:7] == [0.5, 1, 2, 4, 8, 16, 20]
    assert max(time.slept) == 20


def test_one_that_never_answered_is_given_up_soon() -> None:
    time = _Time()
    trial = _patience(300.0, time).trial()
    while trial.wait():
        pass
    assert time.now == FIRST_PATIENCE


def test_delays_differ_by_chance() -> None:
    time = _Time()
    _patience(300.0, time, chance=0.0).trial().wait()
    assert time.slept == [0.25]


def test_much_progress_begins_a_new_row_of_failures() -> None:
    """A large read may be cut many times; one that brings a few bytes each time is given up."""
    for brought, ends in ((1 << 20, False), (1000, True)):
        time = _Time()
        trial = _patience(10.0, time).trial()
        waited = 0
        while waited < 1000 and trial.wait():
            waited += 1
            time.now += 5
            trial.progress(brought)
        assert (waited < 1000) is ends


def test_no_patience_at_all() -> None:
    time = _Time()
    assert not _patience(0.0, time).trial().wait()
    assert time.slept == []
