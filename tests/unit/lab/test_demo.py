"""The demo's own judgement: it must not call equal what differs."""

from __future__ import annotations

import pytest

from tests.lab.demo import MismatchError, compare_files, read_hashes

THEN = read_hashes("aa  /srv/a\nbb  /srv/b  c\ncc  /etc/x\n")


def test_hashes_are_read_by_path() -> None:
    """A path may hold spaces."""
    assert THEN == {"/srv/a": "aa", "/srv/b  c": "bb", "/etc/x": "cc"}


@pytest.mark.parametrize("now", [
    THEN | {"/srv/a": "ab"},
    THEN | {"/srv/new": "dd"},
    {"/srv/a": "aa", "/etc/x": "cc"},
    {},
])
def test_changed_added_and_missing_files_are_seen(now: dict[str, str]) -> None:
    """Any difference below the folders that count fails, and names the file."""
    with pytest.raises(MismatchError, match="/srv/"):
        compare_files(THEN, now, ignore="/etc/")


def test_nothing_is_not_equal_to_nothing() -> None:
    """An empty list of files proves nothing."""
    with pytest.raises(MismatchError):
        compare_files({}, {})


def test_ignored_files_may_differ() -> None:
    """A boot writes in /etc."""
    compare_files(THEN, THEN | {"/etc/x": "changed"}, ignore="/etc/")
