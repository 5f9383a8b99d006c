"""From a path to a Config: found, parsed, checked as a whole."""

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from vmbackup.config import models
from vmbackup.config.checks import cross_checks
from vmbackup.config.mistakes import ConfigMistakesError, Mistake, did_you_mean, shown, table_name
from vmbackup.config.models import Config, Repository
from vmbackup.config.positions import key_lines, line_of
from vmbackup.config.units import InvalidValue
from vmbackup.errors import ConfigError

DEFAULT_PATH = Path("/etc/vmbackup/config.toml")
_LARGEST = 4 << 20  # bytes: a file of some megabytes is not a configuration


def find(option: str | None, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The file to read: `option`, else $VMBACKUP_CONFIG, else /etc/vmbackup/config.toml if there is one."""
    named = option or environ.get("VMBACKUP_CONFIG")
    if named:
        return Path(named)
    return DEFAULT_PATH if DEFAULT_PATH.exists() else None


def load(path: Path | None) -> Config:
    """The configuration of `path`, or the defaults for None. ConfigError, with all mistakes at once."""
    return load_text(path)[0]


def load_text(path: Path | None) -> tuple[Config, str]:
    """The same, with the text that says it ("" for None)."""
    text = _read(path) if path else ""
    return parse(text, str(path)), text


def parse(text: str, file: str) -> Config:
    """The configuration that `text` says; `file` is its name in messages. ConfigMistakesError."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigMistakesError(file, [_syntax(str(error), text)]) from None
    except RecursionError:
        raise ConfigError(f"{file} nests its values too deeply", "config.example.toml shows what it holds") from None
    mistakes: list[Mistake] = []
    config = Config()
    try:
        config = Config.model_validate(tables)
    except ValidationError as error:
        mistakes += [_mistake(detail) for detail in error.errors()]
    mistakes += cross_checks(tables)
    if mistakes:
        raise ConfigMistakesError(file, sorted(_placed(mistakes, text), key=lambda m: m.line or 0))
    return with_defaults(config)


def with_defaults(config: Config) -> Config:
    """The same with a local repository under the state folder, if it names no repository."""
    if config.repositories:
        return config
    state = config.daemon.state_dir
    local = Repository.model_validate(
        {"url": f"file://{state}/repository", "passphrase_file": str(state / "passphrase")}
    )
    return config.model_copy(update={"repositories": {models.DEFAULT_REPOSITORY: local}})


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise ConfigError(f"{path} is too large for a configuration", "check --config")
        return content.decode()
    except FileNotFoundError:
        hint = "check --config and $VMBACKUP_CONFIG; config.example.toml shows what it holds"
        raise ConfigError(f"there is no configuration file {path}", hint) from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", "check its permissions") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text", "save it as UTF-8") from None


def _syntax(error: str, text: str) -> Mistake:
    place = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", error)
    line = int(place[1]) if place and place[1] else max(1, len(text.splitlines()))
    column = f", column {place[2]}" if place and place[2] else ""
    said = error[: place.start()] if place else error
    return Mistake((), f"not valid TOML{column}: {said[:1].lower()}{said[1:]}", "texts stand in quotes", line)


def _placed(mistakes: list[Mistake], text: str) -> Iterator[Mistake]:
    lines = key_lines(text)
    for mistake in mistakes:
        yield Mistake(mistake.path, mistake.message, mistake.hint, line_of(lines, mistake.path))


def _mistake(detail: ErrorDetails) -> Mistake:
    """One of pydantic's errors, in our words."""
    path = tuple(str(part) for part in detail["loc"])
    table, key = path[:-1], path[-1] if path else ""
    kind, value = detail["type"], detail["input"]
    context = detail.get("ctx", {})
    if kind == "extra_forbidden":
        if "passphrase" in key or "password" in key:
            hint = "a passphrase never stands in this file: use passphrase_file"
        else:
            hint = did_you_mean(key, _known_keys(table)) or "remove it"
        return Mistake(path, f'unknown key "{key}" in {table_name(table)}', hint)
    if kind == "missing":
        return Mistake(path, f'"{key}" is missing in {table_name(table)}', f"add {key} = ...")
    told = f"{_key_name(path)} = {shown(path, value)}"
    if isinstance(value, dict | list) and kind != "value_error":
        told = _key_name(path)
    if kind == "value_error" and isinstance(context.get("error"), InvalidValue):
        invalid = context["error"]
        said = str(invalid)
        if isinstance(value, dict):
            return Mistake(path, f"{table_name(path)} {said}", invalid.hint)
        if isinstance(value, str) and said.startswith(repr(value)):
            return Mistake(path, f"{_key_name(path)}: {said}", invalid.hint)
        return Mistake(path, f"{told} {said}", invalid.hint)
    if kind == "literal_error":
        allowed = [word.strip("'") for word in str(context["expected"]).replace(" or ", ", ").split(", ")]
        hint = did_you_mean(str(value), allowed) or "use one of " + ", ".join(f'"{word}"' for word in allowed)
        return Mistake(path, f"{told} is not possible", hint)
    return Mistake(path, f"{told} {_ASKED.get(kind, 'is wrong: ' + detail['msg'])}".format(**context))


_ASKED = {
    "string_type": "must be a text in quotes",
    "int_type": "must be a whole number",
    "bool_type": "must be true or false",
    "tuple_type": 'must be a list, like ["*"]',
    "mapping_type": "must be a table",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
    "greater_than_equal": "must be {ge} or more",
    "less_than_equal": "must be {le} or less",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
    "string_pattern_mismatch": "is not a plain name",
}


def _key_name(path: tuple[str, ...]) -> str:
    words = [word for word in path if not word.isdecimal()]
    return words[-1] if words else "the file"


def _known_keys(table: tuple[str, ...]) -> list[str]:
    """The keys that may stand in the table at `table`."""
    at: type[BaseModel] = Config
    words = list(table)
    while words:
        word = words.pop(0)
        if at is Config and word in _NAMED_TABLES:
            at, words = _NAMED_TABLES[word], words[1:]
        else:
            at = _TABLES[word]
    return list(at.model_fields)


_NAMED_TABLES: dict[str, type[BaseModel]] = {"repositories": models.Repository, "jobs": models.Job}
_TABLES: dict[str, type[BaseModel]] = {
    "libvirt": models.Libvirt,
    "host": models.Host,
    "daemon": models.Daemon,
    "keep": models.Keep,
    "drill": models.Drill,
    "hooks": models.Hooks,
    "prune": models.Prune,
    "verify": models.Verify,
}
