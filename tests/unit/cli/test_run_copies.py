"""`run --wait` waits for the copies that follow the backups, and its exit code tells of them."""

from collections.abc import Sequence
from typing import Any

import pytest

from tests.unit.daemon.states import guest, queued, running, snapshot
from vmbackup.cli.run import Waiting, exit_code
from vmbackup.daemon.snapshot import CopyState, RunState
from vmbackup.progress import Silent

DAY = "2026-11-28T02:00:"


def backup(status: str = "success", finished: str = "20") -> dict[str, Any]:
    fields = {"id": "b1", "kind": "backup", "job": "nightly", "domain": "web01", "repository": "local", "target": None}
    times = {"started": f"{DAY}00+00:00", "finished": f"{DAY}{finished}+00:00"}
    return fields | times | {"status": status, "exit_code": 0, "error": None, "hint": None}


def copy(run: str, started: str, status: str = "success", target: str = "offsite", **more: Any) -> dict[str, Any]:
    times = {"started": f"{DAY}{started}+00:00", "finished": f"{DAY}59+00:00"}
    return backup(status) | {"id": run, "kind": "copy", "target": target} | times | more


def going(run: str, target: str = "offsite") -> RunState:
    return running("web01", id=run, kind="copy", target=target)


class Story:
    """What the service tells at each look: what goes on, and the history; the last chapter lasts."""

    def __init__(self, *chapters: tuple[Sequence[RunState], Sequence[dict[str, Any]]], to: Sequence[str]) -> None:
        self._chapters, self._to = list(chapters), to
        self.looks = 0

    def waiting(self) -> Waiting:
        return Waiting(self._status, lambda: self._now[1], Silent(), lambda _seconds: None)

    def _status(self) -> dict[str, Any]:
        self._now = self._chapters[min(self.looks, len(self._chapters) - 1)]
        self.looks += 1
        copies = tuple(CopyState(name) for name in self._to)
        guests = guest("web01", copies=copies), guest("other", copies=copies)
        return snapshot(*guests, runs=tuple(self._now[0])).document()


def outcomes(story: Story, *backups: dict[str, Any]) -> list[tuple[Any, Any, Any]]:
    copies = story.waiting().wait_for_copies(backups or [backup()])
    return [(run["target"], run["id"], run["status"]) for run in copies]


def test_each_copy_is_waited_for() -> None:
    ended = [copy("c2", "22", "failed", "far"), copy("c1", "21")]
    story = Story(
        ((), ()),  # nothing is known of them yet
        ((queued("web01", id="c1", kind="copy", target="offsite"), going("c2", "far")), ()),
        ((going("c2", "far"),), ended[1:]),
        ((), ended),
        to=("offsite", "far"),
    )
    assert outcomes(story) == [("offsite", "c1", "success"), ("far", "c2", "failed")]


def test_a_copy_that_began_before_the_backup_had_ended_does_not_count() -> None:
    old, new = copy("c0", "19"), copy("c1", "40")
    between = ((), [old])
    story = Story(((going("c0"),), ()), between, between, ((going("c1"),), [old]), ((), [new, old]), to=("offsite",))
    assert outcomes(story) == [("offsite", "c1", "success")]


def test_a_copy_that_began_in_the_second_of_the_backups_end_counts_only_where_none_follows() -> None:
    first, new = copy("c0", "20", "failed"), copy("c1", "40")
    followed = Story(((), [first]), ((going("c1"),), [first]), ((), [new, first]), to=("offsite",))
    assert outcomes(followed) == [("offsite", "c1", "success")]
    assert outcomes(Story(((), [first]), to=("offsite",))) == [("offsite", "c0", "failed")]


def test_a_failed_copy_tells_when_it_is_tried_again_and_is_not_waited_for() -> None:
    retry = queued("web01", id="c2", kind="copy", target="offsite", trigger="retry", not_before=1.8e9)
    other = queued("web01", id="c3", kind="copy", target="far", trigger="retry", not_before=1.9e9)
    story = Story(((other, retry), [copy("c1", "21", "failed")]), to=("offsite",))
    (run,) = story.waiting().wait_for_copies([backup()])
    assert (run["status"], run["next_attempt"][:4]) == ("failed", "2027")


def test_a_copy_of_which_nothing_is_known_counts_as_skipped_after_a_while() -> None:
    story = Story(((), ()), to=("offsite",))
    assert outcomes(story) == [("offsite", None, "skipped")]
    assert 10 <= story.looks <= 40


def test_what_has_failed_or_has_no_copies_is_not_waited_for() -> None:
    assert outcomes(Story(((), ()), to=())) == []
    story = Story(((), ()), to=("offsite",))
    assert outcomes(story, backup("failed")) == []
    assert story.looks == 0


@pytest.mark.parametrize(
    ("backups", "copies", "code"),
    [
        (["success"], ["success", "success"], 0),
        (["success"], ["success", "failed"], 3),
        (["success"], ["failed"], 3),
        (["success"], ["skipped"], 3),
        (["success"], ["warning"], 3),
        (["warning"], ["success"], 3),
        (["failed", "failed"], [], 1),
    ],
)
def test_the_exit_code_tells_of_copies(backups: list[str], copies: list[str], code: int) -> None:
    assert exit_code([backup(each) for each in backups], [copy("c", "21", each) for each in copies]) == code
