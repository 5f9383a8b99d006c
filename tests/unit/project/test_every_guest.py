"""The table "Every guest" of docs/operations.md: each row is whole, and the tests that it names exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.unit.project.tree import ROOT

PAGE = ROOT / "docs" / "operations.md"
_TEST = re.compile(r"`((?:unit|real|torture)/[\w/]+\.py)::(test_\w+)(?:\[(\w+)\])?`")
HEAD = ["situation", "what vmbackup does", "what the restore point says", "test that proves it"]


def _rows() -> Iterator[list[str]]:
    """The cells of each line of a table in that section."""
    _, _, section = PAGE.read_text().partition(" Every guest\n")
    section = section.partition("\n## ")[0]
    for line in section.splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


ROWS = [row for row in _rows() if row != HEAD and set(row[0]) != set("-")]


def test_the_table_is_found() -> None:
    assert len(ROWS) > 15


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_each_row_is_proved_by_tests_that_exist(row: list[str]) -> None:
    assert len(row) == len(HEAD)
    assert all(row)
    named = _TEST.findall(row[-1])
    assert named, f"names no test: {row[-1]}"
    for path, name, parameter in named:
        file = ROOT / "tests" / path
        assert file.is_file(), f"tests/{path} is no file"
        functions = [node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)]
        assert name in functions, f"tests/{path} has no {name}"
        folder = "\n".join(each.read_text() for each in file.parent.glob("*.py"))
        assert re.search(rf"\b{parameter}\b", folder), f"nothing beside tests/{path} is called {parameter}"


def test_a_situation_stands_once() -> None:
    situations = [row[0] for row in ROWS]
    assert len(situations) == len(set(situations))
