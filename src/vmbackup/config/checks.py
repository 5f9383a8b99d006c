"""What one key asks of another.

Works on the plain tables, so that these mistakes are told beside all others.
"""

import ipaddress
from collections.abc import Iterator, Mapping
from typing import Any

from vmbackup.config.mistakes import Mistake, did_you_mean
from vmbackup.config.models import DEFAULT_REPOSITORY
from vmbackup.config.schedule import pauses
from vmbackup.config.units import InvalidValue, format_duration, parse_duration
from vmbackup.storage_backends.s3_settings import BadProvider, find_server

_WRITER_KEY_SOURCES = ("writer_key_file", "writer_key_credential")
_KEY_SOURCES = ("passphrase_file", "passphrase_credential", "passphrase_command", *_WRITER_KEY_SOURCES)
_ACCESS_KEY_SOURCES = ("access_key_file", "access_key_credential")
_SECRET_KEY_SOURCES = ("secret_key_file", "secret_key_credential")
_S3_ONLY = (
    "provider", "endpoint_url", "region", "addressing_style", *_ACCESS_KEY_SOURCES, *_SECRET_KEY_SOURCES, "ca_file",
    "egress_price",
)  # fmt: skip


def cross_checks(tables: Mapping[str, Any]) -> Iterator[Mistake]:
    """Every contradiction between keys of the parsed file; keys of a wrong type are passed over."""
    repositories = _tables(tables, "repositories")
    names = tuple(repositories) or (DEFAULT_REPOSITORY,)
    for name, repository in repositories.items():
        yield from _repository(("repositories", name), repository)
    for name, job in _tables(tables, "jobs").items():
        yield from _job(("jobs", name), job, names)
        yield from _drill(("jobs", name, "drill"), job, repositories)
    daemon = tables.get("daemon")
    if isinstance(daemon, dict):
        yield from _daemon(daemon)


def _tables(tables: Mapping[str, Any], key: str) -> dict[str, Mapping[str, Any]]:
    found = tables.get(key)
    if not isinstance(found, dict):
        return {}
    return {name: table for name, table in found.items() if isinstance(table, dict)}


def _repository(path: tuple[str, ...], table: Mapping[str, Any]) -> Iterator[Mistake]:
    for alternatives in (_KEY_SOURCES, _ACCESS_KEY_SOURCES, _SECRET_KEY_SOURCES):
        sources = [key for key in table if key in alternatives]
        if len(sources) > 1:
            told = " and ".join(sources)
            yield Mistake((*path, sources[1]), f"{told} exclude each other", "keep one of them")
    url = table.get("url")
    if isinstance(url, str) and not url.startswith("s3://"):
        for key in table:
            if key in _S3_ONLY:
                yield Mistake((*path, key), f"{key} is for s3:// addresses only", "remove it, or correct url")
    if isinstance(url, str) and url.startswith("s3://"):
        yield from _server(path, table)
    pair = _ACCESS_KEY_SOURCES, _SECRET_KEY_SOURCES
    for ours, others in (pair, pair[::-1]):
        for one, other in zip(ours, others, strict=True):
            if one in table and not any(key in table for key in others):
                yield Mistake((*path, one), f"{one} without {other}", f"add {other}")


def _server(path: tuple[str, ...], table: Mapping[str, Any]) -> Iterator[Mistake]:
    """Whether the keys of an S3 repository say where its server is."""
    given = [table.get(key) for key in ("provider", "endpoint_url", "region", "addressing_style")]
    try:
        find_server(*[value if isinstance(value, str) else None for value in given])
    except BadProvider as error:
        yield Mistake((*path, error.key), error.message, error.hint)


def _job(path: tuple[str, ...], table: Mapping[str, Any], repositories: tuple[str, ...]) -> Iterator[Mistake]:
    home = table.get("repository", repositories[0])
    copies = table.get("copy_to", [])
    asked = [("repository", table.get("repository"))]
    asked += [("copy_to", name) for name in copies] if isinstance(copies, list) else []
    for key, name in asked:
        if isinstance(name, str) and name not in repositories:
            hint = did_you_mean(name, repositories) or f"add [repositories.{name}]"
            yield Mistake((*path, key), f'{key}: there is no repository "{name}"', hint)
        elif key == "copy_to" and name == home:
            yield Mistake((*path, key), f'copy_to: "{name}" is the repository of the job itself', "remove it")
    if table.get("keep") == {}:
        yield Mistake((*path, "keep"), "keep is empty", "say how many to keep, or remove it to keep all")
    if "ping_failure_url" in table and "ping_url" not in table:
        yield Mistake((*path, "ping_failure_url"), "ping_failure_url without ping_url", "add ping_url")
    if "copy_max_age" in table and not copies:
        yield Mistake((*path, "copy_max_age"), "copy_max_age without copy_to", "add copy_to, or remove it")
    for key in ("freeze_mounts", "freeze_timeout"):
        if key in table and table.get("quiesce") == "never":
            yield Mistake((*path, key), f'{key} with quiesce = "never", which freezes nothing', "remove one of them")
    if "window" in table and "schedule" not in table:
        yield Mistake((*path, "window"), "window without schedule", "add schedule, or remove it")
    yield from _window(path, table)


def _window(path: tuple[str, ...], table: Mapping[str, Any]) -> Iterator[Mistake]:
    """Whether a guest has started before its next time comes: else a restart of the service would put it off."""
    try:
        window, pause = parse_duration(table["window"]), pauses(table["schedule"])[0]
    except (KeyError, TypeError, AttributeError, InvalidValue):
        return  # told elsewhere, where it is wrong
    if window.total_seconds() > pause:
        told = f'window = "{table["window"]}" is longer than the {format_duration(pause)} between two of the schedule'
        yield Mistake((*path, "window"), told, "make it shorter, or the schedule rarer")


def _drill(
    path: tuple[str, ...], job: Mapping[str, Any], repositories: Mapping[str, Mapping[str, Any]]
) -> Iterator[Mistake]:
    """Whether the key of the job's repository can boot what is stored there."""
    name = job.get("repository", next(iter(repositories), None))
    own = repositories.get(name, {}) if isinstance(name, str) else {}
    if isinstance(job.get("drill"), dict) and any(key in own for key in _WRITER_KEY_SOURCES):
        told = f'drill: repository "{name}" opens with a writer key, which may not read what is stored'
        yield Mistake(path, told, "drill on a host with the passphrase, and remove it here")


def _daemon(table: Mapping[str, Any]) -> Iterator[Mistake]:
    """Whether the page is for anyone who reaches it only where that is this machine."""
    listen = table.get("listen")
    if table.get("web") is True and isinstance(listen, str) and "web_token_file" not in table and not loopback(listen):
        told = f'web = true at "{listen}", which others reach, without web_token_file'
        hint = "name a file with a token of 16 or more characters, or listen at 127.0.0.1"
        yield Mistake(("daemon", "web"), told, hint)


def loopback(listen: str) -> bool:
    """Whether only this machine reaches the address HOST:PORT."""
    host = listen.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
