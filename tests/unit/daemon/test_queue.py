"""The queue: limits, order, and what is not taken in."""

from __future__ import annotations

import pytest

from tests.unit.daemon.rig import NOON, backup, copy, drill, prune, runs, verify
from vmbackup.daemon.queue import Limits, Queue
from vmbackup.daemon.work import Request, Skip, Trigger

A, B, C, D = (backup(name) for name in "abcd")
MANUAL = Trigger.MANUAL


def taken(limits: Limits, waiting: list[Request], running: list[Request], now: float = NOON) -> list[Request]:
    queue = Queue(limits)
    for request in waiting:
        assert queue.add(request, runs(*running)) is None
    return queue.take(now, runs(*running))


OFFSITE = [backup("x", "offsite"), backup("y", "offsite")]
LIMITS = [
    ("none at all", Limits(2), [], [], []),
    ("up to the host's limit", Limits(2), [A, B, C], [], [A, B]),
    ("beside what runs", Limits(2), [B, C], [A], [B]),
    ("a full host", Limits(2), [C], [A, B], []),
    ("a limit that was lowered below what runs", Limits(1), [D], [A, B, C], []),
    ("copies and drills are domain work", Limits(2), [copy("a"), drill("b"), C], [], "2"),
    ("a repository's own limit", Limits(8, {"offsite": 1}), OFFSITE, [], OFFSITE[:1]),
    ("a full repository holds back no other", Limits(8, {"offsite": 1}), [*OFFSITE, A], [], [OFFSITE[0], A]),
    ("a copy counts where it writes", Limits(8, {"offsite": 1}), [copy("a")], [OFFSITE[0]], []),
    ("a copy does not count where it reads", Limits(8, {"local": 1}), [A], [copy("b")], [A]),
    ("a drill writes to no repository", Limits(8, {"local": 1}), [A], [drill("b")], [A]),
    ("the host's limit holds in each repository", Limits(1, {"offsite": 5}), OFFSITE, [], OFFSITE[:1]),
    ("prune beside a full host", Limits(1), [prune()], [A], "1"),
    ("backups beside prune", Limits(1), [A], [prune()], [A]),
    ("prune does not count in its repository", Limits(1, {"local": 1}), [A], [prune()], [A]),
    ("one prune on the host", Limits(8), [prune("offsite")], [prune()], []),
    ("prune or verify", Limits(8), [prune(), verify(), verify("offsite")], [], "1"),
    ("a domain's backups by two jobs", Limits(8), [A, backup("a", "offsite", "weekly")], [], [A]),
    ("the other job's goes on", Limits(8), [A], [backup("a", "offsite", "weekly")], []),
    ("a domain's backup and copy", Limits(8), [A], [copy("a")], [A]),
    ("not before its time", Limits(8), [backup("a", not_before=NOON + 1)], [], []),
    ("at its time", Limits(8), [backup("a", not_before=NOON)], [], "1"),
]


@pytest.mark.parametrize(("limits", "waiting", "running", "expected"), [case[1:] for case in LIMITS],
                         ids=[case[0] for case in LIMITS])  # fmt: skip
def test_what_may_start(
    limits: Limits, waiting: list[Request], running: list[Request], expected: list[Request] | str
) -> None:
    """What is taken of those that wait; a text where only their number counts."""
    found = taken(limits, waiting, running)
    assert found == expected if isinstance(expected, list) else len(found) == int(expected)


ORDERS = [
    ("the promise that breaks first", [backup("a", promise=NOON + 9), backup("b", promise=NOON - 9)], [1, 0]),
    ("no promise comes last", [backup("a"), backup("b", promise=NOON + 1e9)], [1, 0]),
    ("then what was due first", [backup("a", due=NOON - 1), backup("b", due=NOON - 2)], [1, 0]),
    ("then what came first", [backup("b"), backup("a")], [0, 1]),
    ("an operator's wish first of all", [backup("a", promise=0), backup("b", trigger=MANUAL)], [1, 0]),
    ("wishes in the same order", [backup("a", trigger=MANUAL), backup("b", trigger=MANUAL, promise=NOON)], [1, 0]),
    ("whatever the work", [backup("a", promise=NOON), copy("b", promise=NOON - 1), prune()], [1, 0, 2]),
]


@pytest.mark.parametrize(("requests", "order"), [case[1:] for case in ORDERS], ids=[case[0] for case in ORDERS])
def test_order(requests: list[Request], order: list[int]) -> None:
    """Both as they are shown and as they start."""
    queue = Queue(Limits(8))
    for request in requests:
        queue.add(request)
    expected = [requests[i] for i in order]
    assert queue.waiting() == expected
    assert queue.take(NOON, []) == expected
    assert queue.waiting() == []


@pytest.mark.parametrize("trigger", list(Trigger))
def test_work_that_waits_or_runs_is_not_taken_in_again(trigger: Trigger) -> None:
    """Whoever asks is told, an operator too."""
    queue = Queue(Limits(8))
    assert queue.add(A) is None
    assert queue.add(backup("a", trigger=trigger)) is Skip.QUEUED
    assert queue.add(backup("b", trigger=trigger), runs(B)) is Skip.RUNNING
    assert queue.waiting() == [A]


def test_two_jobs_of_one_domain_both_have_their_turn() -> None:
    """The one waits for the other, however often they come due together."""
    queue = Queue(Limits(8))
    other = backup("a", "offsite", "weekly")
    assert queue.add(A) is None
    assert queue.add(other) is None
    assert queue.take(NOON, []) == [A]
    assert queue.add(backup("a"), runs(A)) is Skip.RUNNING
    assert queue.take(NOON, runs(A)) == []
    assert queue.take(NOON, []) == [other]


def test_only_a_retry_gives_its_place_up() -> None:
    queue = Queue(Limits(8))
    retry = backup("a", trigger=Trigger.RETRY, not_before=NOON + 600)
    queue.add(retry)
    queue.add(B)
    assert queue.supersede(backup("b")) is None
    assert queue.supersede(backup("c")) is None
    assert queue.supersede(backup("a")) is retry
    assert queue.waiting() == [B]


def test_remove() -> None:
    queue = Queue(Limits(8))
    queue.add(A)
    assert queue.remove(B.id) is None
    assert queue.remove(A.id) is A
    assert queue.waiting() == []
    assert queue.add(A) is None


def test_the_next_start_is_the_nearest_that_is_still_to_come() -> None:
    """What may start already waits for room, not for time."""
    queue = Queue(Limits(1))
    assert queue.next_start(NOON) is None
    for request in (A, backup("b", not_before=NOON + 30), backup("c", not_before=NOON + 20)):
        queue.add(request)
    assert queue.next_start(NOON) == NOON + 20
    assert queue.next_start(NOON + 20) == NOON + 30
    assert queue.next_start(NOON + 30) is None


def test_limits_may_change_at_any_time() -> None:
    queue = Queue(Limits(1))
    for request in (A, B, C):
        queue.add(request)
    assert queue.take(NOON, []) == [A]
    queue.limits = Limits(3)
    assert queue.take(NOON, runs(A)) == [B, C]


def test_an_operator_need_not_wait_for_the_moment_in_the_window() -> None:
    """What he asks for takes the place of what the schedule lets wait; of what another asked for, it does not."""
    queue = Queue(Limits(1))
    waiting = backup("web", not_before=NOON + 3600)
    queue.add(waiting)
    now = backup("web", trigger=MANUAL)
    assert queue.supersede(backup("web")) is None
    assert queue.supersede(now) == waiting
    assert queue.add(now) is None
    assert queue.supersede(backup("web", trigger=MANUAL)) is None
    assert queue.take(NOON, []) == [now]
