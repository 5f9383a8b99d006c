"""Checks of `doctor` on the service: its unit, whether it runs, the configuration it has, what systemd denies it."""

import shlex
from collections.abc import Iterator
from datetime import datetime
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from vmbackup.cli.checks import private_check
from vmbackup.cli.systemd_unit import DROP_IN, Unit, read_unit
from vmbackup.config.schedule import pauses
from vmbackup.config.units import format_duration
from vmbackup.errors import VmbackupError
from vmbackup.hypervisor import Check

if TYPE_CHECKING:
    from vmbackup.config.models import Config, Drill, Job, Prune, Verify

_LEAST_TOKEN = 16  # characters
_SLACK_SECONDS = 1.0  # times in the answer are whole seconds


def service_checks(path: Path | None, config: "Config") -> Iterator[Check]:
    """All of them; `path` is the file of the configuration. Without systemd those that need none."""
    scheduled = any(job.schedule for job in config.jobs.values())
    unit = read_unit()
    if unit is None:
        yield Check("service", "host", "ok", "systemd does not run this machine: the service's unit is not looked at")
    elif unit.installed:
        yield _unit_check(unit, scheduled=scheduled)
        yield from _denied(unit, config)
    elif scheduled:
        yield Check("service", "host", "warn", "it is not installed: no job runs by its schedule", "make install")
    if scheduled or (unit and unit.active == "active"):
        yield from _running_checks(unit, path, config)
    else:
        yield Check("service-running", "host", "ok", "no job has a schedule, so no service is needed")
    yield from _token_checks(config)
    yield from _promise_checks(config)


def _promise_checks(config: "Config") -> Iterator[Check]:
    """Promises that break by their own schedule."""
    for name, job in config.jobs.items():
        yield from _promise_check(f"jobs.{name}", job)
        if job.drill:
            yield from _promise_check(f"jobs.{name}.drill", job.drill)
    for name, repository in config.repositories.items():
        for what, work in (("prune", repository.prune), ("verify", repository.verify)):
            if work:
                yield from _promise_check(f"repositories.{name}.{what}", work)


def _promise_check(subject: str, work: "Job | Drill | Prune | Verify") -> Iterator[Check]:
    if work.schedule is None or work.max_age is None:
        return
    pause = pauses(work.schedule)[1]
    promised = format_duration(work.max_age.total_seconds())
    if pause < work.max_age.total_seconds():
        yield Check("promise", subject, "ok", f"its schedule can keep max_age, {promised}")
        return
    up_to = "a schedule that comes once" if pause == inf else f"up to {format_duration(pause)} between two"
    message = f"max_age is {promised}, with {up_to}: it breaks although all goes well"
    fix = f"raise max_age of [{subject}] above that, or let it run more often"
    yield Check("promise", subject, "warn", message, fix)


def _unit_check(unit: Unit, *, scheduled: bool) -> Check:
    if unit.outdated:
        return Check("service", "unit", "warn", "its files changed since systemd read them", "systemctl daemon-reload")
    if scheduled and not unit.enabled:
        return Check("service", "unit", "warn", "it is not started with the machine", "systemctl enable --now vmbackup")
    return Check("service", "unit", "ok", "installed and enabled" if unit.enabled else "installed, not enabled")


def _running_checks(unit: Unit | None, path: Path | None, config: "Config") -> Iterator[Check]:
    """Whether it answers, and whether what it loaded is what the file says."""
    from vmbackup.cli.control import Control

    socket = config.daemon.socket
    try:
        told = Control(socket).status()
    except VmbackupError as error:
        fix = "systemctl start vmbackup" if unit else "vmbackup daemon"
        if unit and unit.active == "failed":
            yield Check("service-running", "host", "fail", f"it failed ({unit.result})", "journalctl -eu vmbackup")
        else:
            yield Check("service-running", "host", "warn", f"{error.message}: no job runs by its schedule", fix)
        return
    yield Check("service-running", "host", "ok", f"it answers at {socket}, state: {told.get('state')}")
    yield _config_check(path, told)


def _config_check(path: Path | None, told: dict[str, object]) -> Check:
    subject, loaded = str(path or "defaults"), told.get("config_loaded")
    reload = "systemctl reload vmbackup"
    if told.get("config_file") != (str(path) if path else None):
        message = f"the service has the configuration {told.get('config_file') or 'of the defaults'}"
        return Check("service-config", subject, "warn", message, "give both the same --config")
    if told.get("config_ok") is False:
        message = f"the service could not load it and goes on with the former one: {told.get('config_error')}"
        return Check("service-config", subject, "warn", message, f"correct it, then: {reload}")
    if path and isinstance(loaded, str):
        since = path.stat().st_mtime - datetime.fromisoformat(loaded).timestamp()
        if since > _SLACK_SECONDS:
            return Check("service-config", subject, "warn", "it changed since the service loaded it", reload)
    return Check("service-config", subject, "ok", "the service has loaded it as it is")


def _denied(unit: Unit, config: "Config") -> Iterator[Check]:
    """What the configuration asks of the service and its unit does not allow."""
    lacking = [(subject, path) for subject, path in _written(config) if not unit.may_write(path)]
    for subject, path in lacking:
        yield _denial(subject, f"the service may not write to {path}", f"ReadWritePaths=-{path}")
    for subject, name in _credentials(config):
        if name not in unit.credentials:
            setting = f"LoadCredential={name}:/etc/vmbackup/credentials/{name}"
            yield _denial(subject, f"the unit has no credential {name}", setting)
            lacking.append((subject, Path(name)))
    group = config.daemon.socket_group
    if group and not unit.gives_group(group):
        message = f"the service may not give its socket to the group {group}"
        yield _denial("socket", message, f"SupplementaryGroups={group}")
    elif not lacking:
        yield Check("service-access", "unit", "ok", "the service may write wherever the configuration asks it to")


def _denial(subject: str, message: str, setting: str) -> Check:
    """A FAIL with the drop-in that mends it, as one command."""
    folder = DROP_IN.rpartition("/")[0]
    line = shlex.quote(setting)
    fix = f"mkdir -p {folder} && printf '[Service]\\n%s\\n' {line} >> {DROP_IN} && systemctl daemon-reload"
    return Check("service-access", subject, "fail", message, f"{fix} && systemctl restart vmbackup")


def _written(config: "Config") -> Iterator[tuple[str, Path]]:
    """The folders that a service with this configuration writes to."""
    for name, repository in config.repositories.items():
        if not repository.url.startswith("s3://"):
            yield name, Path(repository.url.removeprefix("file://"))
    yield "state_dir", config.daemon.state_dir
    yield "cache_dir", config.host.cache_dir
    yield "scratch_dir", config.libvirt.scratch_dir
    yield "socket", config.daemon.socket.parent
    if config.daemon.textfile:
        yield "textfile", config.daemon.textfile.parent


def _credentials(config: "Config") -> Iterator[tuple[str, str]]:
    for name, repository in config.repositories.items():
        for key, value in repository:
            if key.endswith("_credential") and value is not None:
                yield name, value


def _token_checks(config: "Config") -> Iterator[Check]:
    """The token of the page: there, private, long enough."""
    path = config.daemon.web_token_file
    if path is None or not config.daemon.web:
        return
    make = f"(umask 077; openssl rand -hex 24 > {shlex.quote(str(path))})"
    try:
        length = len(path.read_text(encoding="utf-8", errors="replace").strip())
    except OSError as error:
        yield Check("web-token", str(path), "fail", f"cannot be read: {error.strerror}", make)
        return
    if length < _LEAST_TOKEN:
        message = f"it has {length} characters, and needs {_LEAST_TOKEN}"
        yield Check("web-token", str(path), "fail", message, make)
        return
    yield private_check(path, "web-token", 0o077, "readable by its owner only", "others may read it")
