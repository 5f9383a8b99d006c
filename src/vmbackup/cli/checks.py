"""Checks of `doctor` that need no hypervisor: the configuration, its files, the repository, the clock."""

import os
import shlex
import shutil
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from vmbackup.config.units import format_duration, format_size
from vmbackup.errors import VmbackupError
from vmbackup.hypervisor import Check

if TYPE_CHECKING:
    from vmbackup.config.models import Config
    from vmbackup.config.models import Repository as Settings
    from vmbackup.repository import Repository
    from vmbackup.repository.points import Point

_UNVERIFIED = timedelta(days=7)  # a restore point that is older should have been verified once


def config_checks(path: Path | None, config: "Config") -> Iterator[Check]:
    """The configuration, which was loaded, and the files of secrets that it names."""
    if path is None:
        yield Check("config", "defaults", "ok", "no configuration file, the defaults hold")
    else:
        told = f"repositories: {len(config.repositories)}, jobs: {len(config.jobs)}"
        yield private_check(path, "config", 0o022, f"valid: {told}", "others may change it, and it is read as root")
    for repository in config.repositories.values():
        for file in _secret_files(repository):
            if file is not None and file.exists():
                yield private_check(file, "secret", 0o077, "readable by its owner only", "others may read it")


def program_checks(config: "Config") -> Iterator[Check]:
    """The programs of this host that jobs run: each is told that is not there, or is none."""
    for name, job in config.jobs.items():
        found = {"on_failure": job.on_failure}
        if job.hooks:
            found |= {"hooks.before": job.hooks.before, "hooks.after": job.hooks.after}
        for what, command in found.items():
            if command and not os.path.isfile(command[0]):
                look = f"ls -l {shlex.quote(command[0])}"
                yield Check("program", f"jobs.{name}.{what}", "fail", f"there is no file {command[0]}", look)
            elif command and not os.access(command[0], os.X_OK):
                message = f"{command[0]} cannot be executed"
                yield Check("program", f"jobs.{name}.{what}", "fail", message, f"chmod +x {shlex.quote(command[0])}")


def _secret_files(repository: "Settings") -> tuple[Path | None, ...]:
    keys = repository.passphrase_file, repository.writer_key_file
    return *keys, repository.access_key_file, repository.secret_key_file


def private_check(path: Path, name: str, forbidden: int, well: str, wrong: str) -> Check:
    """Whether nobody but the owner (this user or root) has the `forbidden` permissions on `path`."""
    quoted = shlex.quote(str(path))
    try:
        found = path.stat()
    except OSError as error:
        return Check(name, str(path), "fail", f"cannot be looked at: {error.strerror}", f"ls -l {quoted}")
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid not in (0, os.geteuid()):
        return Check(name, str(path), "fail", "belongs to another user", f"chown root:root {quoted}")
    if mode & forbidden:
        fix = f"chmod {'go-w' if forbidden == 0o022 else '600'} {quoted}"
        return Check(name, str(path), "fail" if mode & 0o002 else "warn", f"mode {mode:04o}: {wrong}", fix)
    return Check(name, str(path), "ok", well)


def cache_check(folder: Path) -> Check:
    """The cache folder, made if it is missing."""
    from vmbackup.cli.access import make_folder

    try:
        make_folder(folder)
    except VmbackupError as error:
        return Check("cache-folder", str(folder), "fail", error.message, error.hint)
    if not os.access(folder, os.W_OK | os.X_OK):
        return Check("cache-folder", str(folder), "fail", "cannot be written", "run vmbackup as root")
    return Check("cache-folder", str(folder), "ok", f"{format_size(shutil.disk_usage(folder).free)} free")


def repository_checks(config: "Config", name: str) -> Iterator[Check]:
    """The store of a repository, what it can do and its clock; then the repository itself."""
    from vmbackup.cli import access
    from vmbackup.cli.failure import Failure
    from vmbackup.cli.findings import compare
    from vmbackup.cli.store_checks import lock_check, store_checks
    from vmbackup.storage_backends import StoreError, StoreMissing

    _, settings = access.named_repository(config, name)
    in_bucket = settings.url.startswith("s3://")
    init = f"vmbackup --repository {shlex.quote(name)} init"
    try:
        store = access.open_store_of(settings)
        try:
            probe, place = store.probe(powers=True), store.place
        finally:
            store.close()
    except StoreMissing as error:
        yield Check("store", name, "fail", error.message, f"{init} --create-bucket" if in_bucket else init)
        return
    except (StoreError, VmbackupError) as error:
        yield Check("store", name, "fail", error.message, error.hint or f"look at {settings.url}")
        return
    yield from store_checks(name, settings.url, probe, compare(config.daemon.state_dir, place, probe))
    try:
        with access.opened_repository(config, name) as repository:
            found = repository.read_points()
            yield _key_check(name, repository)
            yield _residency_check(name, repository)
    except Exception as error:
        failure = Failure.of(error)
        fix = init if failure.kind == "not_found" else failure.hint
        yield Check("repository", name, "fail", failure.message, fix)
        return
    if found.damaged:
        message = f"restore points that cannot be read: {len(found.damaged)} ({found.damaged[0].message})"
        yield Check("repository", name, "fail", message, f"vmbackup --repository {shlex.quote(name)} verify")
    elif found.quarantined:
        message = f"in quarantine, for their writer was revoked: {len(found.quarantined)}"
        yield Check("repository", name, "warn", message, f"vmbackup --repository {shlex.quote(name)} list")
    elif found.doubtful or found.backdated:
        number = sum(map(len, found.doubtful)) + len(found.backdated)
        message = f"doubtful restore points, which may be forged: {number}"
        yield Check("repository", name, "warn", message, f"vmbackup --repository {shlex.quote(name)} list")
    else:
        yield Check("repository", name, "ok", f"{repository.id} opened, restore points: {len(found.points)}")
    if days := repository.config.object_lock_days:
        yield lock_check(name, days, probe)
    yield _verified_check(config.daemon.state_dir, name, repository.config.repository.hex(), found.points)


def _key_check(name: str, repository: "Repository") -> Check:
    """Which kind of key this host has, and whether it still counts."""
    own = repository.writer
    if repository.can_read:
        return Check("key", name, "ok", "a passphrase: this host reads, restores and may change keys")
    does = "backs up, reads no stored data" if own.role == "backup" else "forgets and prunes, reads no stored data"
    try:
        repository.check_enrolled()
    except VmbackupError as error:
        return Check("key", name, "fail", error.message, error.hint)
    return Check("key", name, "ok", f"writer key '{own.name}', role {own.role}, group {own.group}: {does}")


def _residency_check(name: str, repository: "Repository") -> Check:
    from vmbackup.repository.residency import location

    allowed, here = repository.config.allowed_endpoints, location(repository.store.place)
    only = "anywhere" if allowed is None else f"at {', '.join(allowed)} only"
    return Check("residency", name, "ok", f"data lies at {here}, and may lie {only}")


def _verified_check(state_dir: Path, name: str, repository: str, points: list["Point"]) -> Check:
    """When this host last verified the repository, and whether damage is known."""
    from vmbackup.engine.care.verified import recall

    verify, repair = (f"vmbackup --repository {shlex.quote(name)} {command}" for command in ("verify", "repair"))
    kept, now = recall(state_dir, name, repository), datetime.now(UTC)
    if kept and kept.damaged:
        return Check("verified", name, "warn", f"objects known to be damaged: {len(kept.damaged)}", repair)
    old = any(now - point.time > _UNVERIFIED for point in points)
    if kept is None or kept.time is None:
        return Check("verified", name, "warn" if old else "ok", "never on this host", verify)
    told = f"{format_duration((now - kept.time).total_seconds())} ago, no damage known"
    if kept.reading is None:
        fix = f"{verify} --read-data=10"
        return Check("verified", name, "warn" if old else "ok", f"{told}, but no data was ever read", fix)
    reading, share = kept.reading, f"{kept.reading.share * 100:.3g} %"
    read = f"{share} of the data read {format_duration((now - reading.time).total_seconds())} ago"
    return Check("verified", name, "ok", f"{told}; {read}")
