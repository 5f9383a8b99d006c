"""Parsers of what a store holds, and a point's readers, take whatever there is: `make fuzz` for a short while."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.__main__ import FOUND, WHOLE, attempt
from tests.fuzz.mutate import lied
from tests.fuzz.targets import Targets
from vmbackup.errors import DamageError
from vmbackup.repository import frames, points
from vmbackup.repository.crypto import digest
from vmbackup.repository.index import PackEntry, encode_root, open_root
from vmbackup.repository.opening import RepositoryConfig
from vmbackup.repository.packs import Birth, read_footer
from vmbackup.repository.shapes import Hex, Maybe, Up, check

ROOT = Path(__file__).parents[3]
TARGETS = sorted(name.removeprefix("fuzz_") for name in dir(Targets) if name.startswith("fuzz_"))


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Targets]:
    return Targets(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("name", TARGETS)
def test_only_our_errors_come_out(targets: Targets, name: str) -> None:
    """Of each parser, and of all commands on a repository with one wrong object."""

    @settings(max_examples=4 if name == WHOLE else 60, deadline=None, database=None, derandomize=True,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.integers(0, 1 << 32))
    def run(seed: int) -> None:
        result, text = attempt(targets.all()[name], name, seed, 0)
        assert result != FOUND, text

    run()


def test_a_finding_is_told(tmp_path: Path) -> None:
    """The command counts, prints how to repeat a finding, and fails; without one it succeeds."""
    fine = [sys.executable, "-m", "tests.fuzz", "--target", "node", "--rounds", "30", "--seed", "1"]
    done = subprocess.run(fine, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "seed 1: 30 inputs, 0 different findings" in done.stdout
    broken = (
        "import sys; from tests.fuzz import targets, __main__ as fuzz\n"
        "def fail(self, chance): raise KeyError(chance.random())\n"
        "targets.Targets.fuzz_node = fail; sys.argv = ['fuzz', '--target', 'node', '--rounds', '3', '--seed', '1']\n"
        "sys.exit(fuzz.main())"
    )
    found = subprocess.run([sys.executable, "-c", broken], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "FOUND by --seed 1 --only node:0" in found.stdout
    assert "3 inputs, 1 different findings" in found.stdout


# What it found


@pytest.mark.parametrize(
    ("shape", "fine", "wrong"),
    [
        (int, [0, 1, (1 << 63) - 1], [-1, 1 << 63, True, 1.0, "1", None]),
        (float, [0, 1.5, -2.0], [True, float("nan"), float("inf"), 1e300, "1"]),
        (Up(9), [0, 9], [10, -1, False]),
        (Hex(2), ["00ff"], ["00FF", "00", "00f", "0 0f", 1, None]),
        (Maybe(str), [None, ""], [0]),
        ([str], [[], ["x"]], [["x", 1], "x", {}]),
        ({str: int}, [{}, {"a": 1}], [{"a": -1}, []]),
        ({"a": int, "b?": str}, [{"a": 1}, {"a": 1, "b": "", "c": None}], [{}, {"a": 1, "b": None}, {"b": ""}, []]),
    ],
)
def test_shapes(shape: Any, fine: list[Any], wrong: list[Any]) -> None:
    """A value has a shape or it has not, to the last field."""
    for value in fine:
        check(value, shape, "x")
    for value in wrong:
        with pytest.raises(DamageError, match="x does not hold what it must"):
            check(value, shape, "x")


def test_a_lie_is_told_by_its_field() -> None:
    """So that somebody who looks for the writer knows what to look at."""
    with pytest.raises(DamageError, match=r"must: disks\[1\]\.root\.slot$"):
        check({"disks": [{"root": {"slot": 1}}, {"root": {}}]}, {"disks": [{"root": {"slot": int}}]}, "points/x")


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a":"\\ud800"}', b"\xff", b"[]", b'{"a":' + b"1" * 5000 + b"}"])
def test_json_that_is_none(text: bytes) -> None:
    """Nested for ever, halves of characters, numbers of thousands of digits."""
    with pytest.raises(DamageError):
        frames.parse(text, "x")


@pytest.mark.parametrize(
    "entry",
    [
        PackEntry("data", 0, 1000, 7, 16, 100, 1, bytes(32)),  # lies in a part that the root does not know
        PackEntry("data", 0, 50, 0, 16, 100, 1, bytes(32)),  # the header is longer than the pack
        PackEntry("data", 0, 1 << 40, 0, 16, 1 << 31, 1, bytes(32)),  # or than any header can be
    ],
)
def test_an_index_that_lies(targets: Targets, entry: PackEntry) -> None:
    """A root tells of packs that can be, or it is refused as a whole."""
    keys, session = targets.keys, bytes(16)
    data = encode_root(keys, session, [Birth(session, session, 0, 1, b"")], 0, [(100, bytes(32))], [entry])
    with pytest.raises(DamageError, match="cannot be"):
        open_root(data, digest(data), keys, session, 1, "index/x")


@pytest.mark.parametrize("allowed", [[None], [{}], "x", 1])
def test_a_config_that_allows_nonsense(targets: Targets, allowed: Any) -> None:
    """It is damaged, as one with any other field of another shape."""
    with pytest.raises(DamageError, match="allowed_endpoints"):
        RepositoryConfig.from_document({**targets.repository.config.document, "allowed_endpoints": allowed})


def test_a_pack_shorter_than_its_footer() -> None:
    """Cut down to nearly nothing, it is damaged as any other."""
    with pytest.raises(DamageError, match="is cut or no pack"):
        read_footer(b"vmbkpend", "data/x")


def test_a_chunk_size_of_nothing(targets: Targets) -> None:
    """A signed point whose chunks have 0 bytes, or 3, is damaged; nobody divides by it."""
    point = targets.points.points[0]
    for size in (0, 3, 1 << 40):
        public = {**point.public, "disks": [{**point.public["disks"][0], "chunk_size": size}]}
        secret = bytes(32)
        table = len(point.table).to_bytes(4, "big") + point.rows
        data = points.encode(points.POINT, targets.keys, targets.repository.writer, point.lineage, point.session,
                             secret, public, table, [])  # fmt: skip
        with pytest.raises(DamageError, match="chunks of impossible size"):
            points.decode(data, targets.keys, point.lineage, point.session, targets.repository.writers())


def test_lies_are_lies() -> None:
    """The generator changes what it is given, and not the original."""
    document = {"a": [1, {"b": "x"}], "c": None}
    made = [lied(random.Random(seed), document) for seed in range(50)]
    assert sum(lie != document for lie in made) > 40
    assert document == {"a": [1, {"b": "x"}], "c": None}


