"""What names a restore point: ids, prefixes, DOMAIN@latest, DOMAIN@TIME; what is ambiguous, missing or damaged."""

import pytest

from vmbackup.errors import DamageError, NotFoundError, UsageError
from vmbackup.repository.layout import Lineage
from vmbackup.repository.points import Point
from vmbackup.repository.repository import PointList
from vmbackup.repository.resolve import parse_time, resolve

from .samples import point, session

OTHER = "00000000-0000-0000-0000-000000000001"


def _list(*points: Point, damaged: tuple[DamageError, ...] = ()) -> PointList:
    return PointList(list(points), [], list(damaged), set())


def _damaged(hours: int, tag: str, lineage: int = 1) -> DamageError:
    key = Lineage("default", bytes([lineage]) * 16).point(session(hours, tag))
    return DamageError(f"{key} is damaged", object_key=key)


A, B, C = point(0, "aaaa0001"), point(10, "aaaa0002"), point(20, "bbbb0003")
D = point(30, "dddd0004", domain="db", uuid=OTHER, lineage=2)
ALL = _list(D, C, B, A)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (A.id, A),
        ("20261124T020000Z", A),
        ("aaaa0002", B),
        ("AAAA0002", B),
        ("b", C),
        ("web1@latest", C),
        (f"{A.uuid}@latest", C),
        ("web1@2026-11-24T12:00:00+00:00", B),
        ("web1@2026-11-24T12:00:00Z", B),
        ("web1@2026-11-24T13:59:00+02:00", A),
        ("web1@2026-11-24", C),
        ("db@latest", D),
    ],
)
def test_names(monkeypatch: pytest.MonkeyPatch, text: str, expected: Point) -> None:
    assert resolve(ALL, text) is expected


def test_a_bare_domain_is_its_newest_point_only_where_that_is_asked_for() -> None:
    assert resolve(ALL, "web1", domains=True) is C
    with pytest.raises(NotFoundError, match="is a domain, not a restore point") as caught:
        resolve(ALL, "web1")
    assert caught.value.hint == "write web1@latest for its newest"


def test_the_newest_is_told_by_seq_not_by_a_clock() -> None:
    back = point(-5, "eeee0001", seq=99)
    assert resolve(_list(C, B, A, back), "web1@latest") is back


def test_an_ambiguous_prefix_names_the_candidates() -> None:
    with pytest.raises(UsageError, match="'aaaa' names 2 restore points") as caught:
        resolve(ALL, "aaaa")
    assert caught.value.hint == f"write more of it: {B.id}, {A.id}"


def test_many_candidates_are_counted() -> None:
    many = _list(*(point(n, f"aa0000{n:02x}") for n in range(20)))
    with pytest.raises(UsageError) as caught:
        resolve(many, "aa")
    assert caught.value.hint.endswith(" and 12 more")


def test_two_guests_of_one_name_are_ambiguous() -> None:
    twin = point(40, "cccc0001", uuid=OTHER, lineage=2)
    with pytest.raises(UsageError, match="2 guests are called 'web1'") as caught:
        resolve(_list(twin, C), "web1@latest")
    assert f"{OTHER}@latest" in caught.value.hint
    assert resolve(_list(twin, C), f"{OTHER}@latest") is twin


def test_a_domain_named_like_a_point_is_ambiguous() -> None:
    beef = point(40, "cccc0001", domain="bbbb", uuid=OTHER, lineage=2)
    with pytest.raises(UsageError, match="names a domain and a restore point"):
        resolve(_list(beef, C), "bbbb", domains=True)
    assert resolve(_list(beef, C), "bbbb") is C


@pytest.mark.parametrize("text", ["ffff", "", "web9@latest", "nothing"])
def test_what_is_not_there_is_5(text: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        resolve(ALL, text)
    assert caught.value.exit_code == 5
    assert caught.value.hint


def test_a_near_domain_is_suggested() -> None:
    with pytest.raises(NotFoundError) as caught:
        resolve(ALL, "wbe1@latest")
    assert caught.value.hint == "did you mean 'web1'?"


def test_before_the_first_point_there_is_none() -> None:
    with pytest.raises(NotFoundError, match="no restore point that old") as caught:
        resolve(ALL, "web1@2026-11-01")
    assert caught.value.hint == f"its first is {A.id}"


def test_what_is_no_time_is_2() -> None:
    with pytest.raises(UsageError, match="'yesterday' is not a time"):
        resolve(ALL, "web1@yesterday")
    assert parse_time("2026-11-24").minute == 59


def test_a_damaged_point_is_told_when_it_is_named() -> None:
    with pytest.raises(DamageError, match="is damaged"):
        resolve(_list(A, damaged=(_damaged(10, "beef0001"),)), "beef")


def test_an_older_point_never_stands_in_for_a_damaged_one() -> None:
    found = _list(A, damaged=(_damaged(10, "beef0001"),))
    with pytest.raises(DamageError, match="a newer restore point of 'web1', beef0001, cannot be read: ") as caught:
        resolve(found, "web1@latest")
    assert caught.value.hint == f"the newest that can be read is {A.id}: name it to use it"
    assert resolve(found, "web1@2026-11-24T03:00Z") is A
    assert resolve(_list(C, damaged=(_damaged(10, "beef0001"),)), "web1@latest") is C
    assert resolve(_list(A, damaged=(_damaged(10, "beef0001", lineage=2),)), "web1@latest") is A


def test_a_domain_whose_points_are_all_damaged_is_damage() -> None:
    with pytest.raises(DamageError, match="no readable restore point of 'web1'"):
        resolve(_list(damaged=(_damaged(10, "beef0001"),)), "web1@latest")
