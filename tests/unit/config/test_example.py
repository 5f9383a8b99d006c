"""config.example.toml is the reference of the file format: it loads, and it shows every key."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from vmbackup.config import models
from vmbackup.config.load import load

EXAMPLE = Path(__file__).parents[3] / "config.example.toml"


def _tables(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        for inner in _models(field.annotation):
            yield from _tables(inner)


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


KEYS = sorted({(table.__name__, key) for table in _tables(models.Config) for key in table.model_fields})


def test_the_example_loads() -> None:
    config = load(EXAMPLE)
    assert list(config.repositories) == ["local", "offsite"]
    assert config.jobs["nightly"].bandwidth_limit == 200 << 20


@pytest.mark.parametrize(("table", "key"), KEYS)
def test_the_example_shows_every_key(table: str, key: str) -> None:
    """Each key stands there, set or commented out."""
    shown = rf"(^|[{{,#]\s*|^\[|\.){key}(\s*=|[\].])"
    assert re.search(shown, EXAMPLE.read_text(), re.MULTILINE), f"{key} of {table} is missing"


def test_all_tables_are_walked() -> None:
    assert {table for table, _ in KEYS} == {
        "Config",
        "Libvirt",
        "Repository",
        "Prune",
        "Verify",
        "Host",
        "Job",
        "Keep",
        "Drill",
        "Hooks",
        "Daemon",
    }


def test_commented_keys_are_valid_too() -> None:
    """Whoever removes a comment sign gets a configuration."""
    text = EXAMPLE.read_text()
    for line in re.findall(r"^# (\w+ = .*)$", text, re.MULTILINE):
        key, value = re.match(r'(\w+) = "([^"]*)"', line).groups()  # type: ignore[union-attr]
        if key in models.Libvirt.model_fields:
            models.Libvirt.model_validate({key: value})
        else:
            models.Repository.model_validate({"url": "s3://bucket", key: value})


def test_the_defaults_are_those_that_the_example_shows() -> None:
    shown, default = load(EXAMPLE), models.Config()
    assert shown.libvirt == default.libvirt
    without = dict.fromkeys(("socket_group", "textfile", "web_token_file"))
    assert shown.daemon.model_copy(update=without) == default.daemon
    assert shown.host == default.host
