"""`vmbackup init`: makes the repository and its first keys."""

import secrets
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmbackup.cli.options import Command, State
from vmbackup.errors import ConfigError, RepositoryError, UsageError

if TYPE_CHECKING:
    from vmbackup.config.models import Config
    from vmbackup.config.models import Repository as Settings
    from vmbackup.repository.keys import Secret
    from vmbackup.storage_backends import ProbeResult, Store


@click.command("init", cls=Command, short_help="Make the repository and its keys.")
@click.option("--chunk-size", metavar="SIZE", help="Of the pieces that disks are cut into: a power of two (64KiB).")
@click.option(
    "--recovery-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Where the recovery key is written; else beside the passphrase.",
)
@click.option("--object-lock", "lock", metavar="DAYS", type=int, help="For so long nobody can delete what is stored.")
@click.option("--create-bucket", is_flag=True, help="Make the bucket too, where it does not exist.")
@click.option("--allow-endpoint", "hosts", metavar="HOST", multiple=True, help="Data may lie there only; or `file`.")
@click.option("--replica-of", metavar="NAME", help="Give it the keys of this repository, for copies as they are.")
@click.pass_obj
def command(
    state: State,
    chunk_size: str | None,
    recovery_file: Path | None,
    lock: int | None,
    hosts: tuple[str, ...],
    replica_of: str | None,
    *,
    create_bucket: bool,
) -> None:
    """Make the repository, its passphrase file if there is none, and its recovery key.

    A replica has the keys of another repository: all that opens that one opens it too, and `vmbackup copy` between them
    needs no passphrase and decodes nothing.
    """
    from vmbackup.cli import access

    size = _size(chunk_size)
    if replica_of and (chunk_size or recovery_file or hosts):
        option = "--chunk-size" if chunk_size else "--recovery-file" if recovery_file else "--allow-endpoint"
        raise UsageError(
            f"a replica has the chunks, the recovery keys and the allowed endpoints of {replica_of}",
            f"leave out {option}",
        )
    config = access.load_config(state)
    name, settings = access.named_repository(config, state.repository)
    if settings.has_writer_key:
        hint = "set passphrase_file instead, and make a host's key by 'vmbackup key add-writer'"
        raise ConfigError(f'repository "{name}" has a writer\'s key, which can make no repository', hint)
    beside = settings.passphrase_file.parent if settings.passphrase_file else config.daemon.state_dir
    recovery = recovery_file.absolute() if recovery_file else beside / f"recovery-key-{name}"
    in_bucket = settings.url.startswith("s3://")
    if create_bucket and not in_bucket:
        raise UsageError(
            f'repository "{name}" is in no bucket', "leave out --create-bucket, or name another repository"
        )
    if lock is not None:
        _check_lock(lock, name, in_bucket=in_bucket)
    access.make_folder(config.daemon.state_dir)
    create = create_bucket or not in_bucket
    with closing(access.open_store_of(settings, create=create, lockable=lock is not None)) as store:
        if replica_of:
            made = _make_replica(store, name, settings, config, replica_of, lock)
        else:
            made = _make(store, name, settings, config.daemon.state_dir, size, recovery, lock, hosts or None)
    if state.json:
        from vmbackup.cli.output import say_json

        say_json({"repository": made.document()})
    else:
        made.say()


def _size(text: str | None) -> int | None:
    if text is None:
        return None
    from vmbackup.config.units import InvalidValue, parse_size

    try:
        return parse_size(text)
    except InvalidValue as error:
        raise UsageError(f"--chunk-size: {error}", error.hint) from None


def _check_lock(days: int, name: str, *, in_bucket: bool) -> None:
    from vmbackup.repository.locks import MOST_DAYS

    if not in_bucket:
        raise UsageError(f'repository "{name}" is in no bucket, and a folder locks nothing', "leave out --object-lock")
    if not 1 <= days <= MOST_DAYS:
        raise UsageError(f"--object-lock: {days} days cannot be meant", f"write 1 to {MOST_DAYS}")


@dataclass(frozen=True)
class _Made:
    name: str
    id: str
    url: str
    chunk_size: int
    passphrase_file: Path | None
    new_passphrase: bool
    recovery_file: Path | None
    lock: int | None
    probe: "ProbeResult"
    replica_of: str | None = None

    def document(self) -> dict[str, object]:
        from vmbackup.cli.findings import document

        passphrase = str(self.passphrase_file) if self.passphrase_file else None
        return {
            "name": self.name,
            "id": self.id,
            "url": self.url,
            "chunk_size": self.chunk_size,
            "passphrase_file": passphrase,
            "passphrase_made": self.new_passphrase,
            "recovery_key_file": str(self.recovery_file) if self.recovery_file else None,
            "replica_of": self.replica_of,
            "object_lock_days": self.lock,
            "store": document(self.probe),
        }

    def say(self) -> None:
        from vmbackup.cli.output import facts, paint, say
        from vmbackup.cli.store_checks import bucket_words
        from vmbackup.repository.locks import generation

        pairs = [("repository", f"{self.name}, {self.id}"), ("place", self.url)]
        if self.probe.bucket is not None:
            pairs.append(("bucket", bucket_words(self.probe.bucket)))
        if self.lock is not None:
            pairs.append(("locked for", f"{self.lock} days, and up to {generation(self.lock)} more"))
        if self.passphrase_file is not None:
            note = " (new, random)" if self.new_passphrase else ""
            pairs.append(("passphrase", f"{self.passphrase_file}{note}"))
        if self.replica_of is not None:
            pairs.append(("replica of", self.replica_of))
            say(facts(pairs))
            say()
            say(f"All passphrases and recovery keys of {self.replica_of} open it too.")
            say(f"'vmbackup copy --from {self.replica_of} --to {self.name}' brings the restore points.")
            self._say_lock()
            return
        pairs.append(("recovery key", str(self.recovery_file)))
        say(facts(pairs))
        say()
        say(paint("Keep the recovery key off this machine.", "yellow") + " Without passphrase and recovery key")
        say("nobody can read the backups, you included. Print it or put it into a password")
        say(f"manager, then delete {self.recovery_file}.")
        self._say_lock()

    def _say_lock(self) -> None:
        from vmbackup.cli.output import say

        if self.lock is not None:
            say()
            say("What is stored can be deleted by nobody before its lock ends, by you neither, and is paid for.")


def _make(
    store: "Store",
    name: str,
    settings: "Settings",
    state_dir: Path,
    chunk_size: int | None,
    recovery: Path,
    lock: int | None,
    hosts: Sequence[str] | None,
) -> _Made:
    """The repository, and files that go away again if it cannot be made."""
    from vmbackup.cli import access
    from vmbackup.cli.findings import remember
    from vmbackup.cli.recovery import recovery_file
    from vmbackup.repository import residency
    from vmbackup.repository.repository import DEFAULT_CHUNK_SIZE, Repository

    residency.first(hosts, store.place)
    size = DEFAULT_CHUNK_SIZE if chunk_size is None else chunk_size
    with ExitStack() as on_failure:
        _refuse_occupied(store)
        probe = _refuse_unfit(store, lock)
        secret, new = _secret(name, settings)
        if new and settings.passphrase_file:
            on_failure.callback(settings.passphrase_file.unlink, missing_ok=True)
        with recovery_file(recovery) as write:
            trust = access.trust(state_dir)

            def keep(repository_id: str, key: str) -> None:
                write(name, repository_id, settings.url, key)
                on_failure.pop_all()  # from now on the passphrase may open something

            repository, _ = Repository.create(
                store,
                secret,
                trust,
                chunk_size=size,
                object_lock_days=lock,
                allowed_endpoints=hosts,
                label=access.host_name(),
                keep_recovery=keep,
            )
        remember(state_dir, store.place, probe)
        return _Made(name, repository.id, settings.url, size, settings.passphrase_file, new, recovery, lock, probe)


def _make_replica(
    store: "Store", name: str, settings: "Settings", config: "Config", source_name: str, lock: int | None
) -> _Made:
    """The replica, and a passphrase file that goes away again if it cannot be made."""
    from vmbackup.cli import access
    from vmbackup.cli.findings import remember
    from vmbackup.repository.replica import make_replica

    access.named_repository(config, source_name)
    if source_name == name:
        raise UsageError(f'"{name}" cannot be a replica of itself', "name the repository to make with --repository")
    with access.opened_repository(config, source_name) as source, ExitStack() as on_failure:
        source.check_may_read()
        _refuse_occupied(store)
        probe = _refuse_unfit(store, lock)
        secret, new = _secret(name, settings)
        if new and settings.passphrase_file:
            on_failure.callback(settings.passphrase_file.unlink, missing_ok=True)
        made = make_replica(source, store, secret, access.trust(config.daemon.state_dir), access.host_name(), lock)
        on_failure.pop_all()
        size = made.config.chunk_size
    remember(config.daemon.state_dir, store.place, probe)
    return _Made(name, made.id, settings.url, size, settings.passphrase_file, new, None, lock, probe, source_name)


def _refuse_occupied(store: "Store") -> None:
    """The refusal that making the repository would meet, before any file is made for it."""
    from vmbackup.storage_backends import occupants

    if next(iter(occupants(store)), None) is None:
        return
    what = "a repository" if next(store.list("config/"), None) else "other things"
    raise RepositoryError(f"{store.url} already holds {what}", "choose another, empty place")


def _refuse_unfit(store: "Store", lock: int | None) -> "ProbeResult":
    """Refuse a place that does not do what a repository relies on. RepositoryError, StoreUnfit."""
    probe = store.probe()
    if probe.lacks:
        raise RepositoryError(f"{store.url} {probe.lacks[0]}", "use another file system or provider")
    if lock is not None:
        _try_lock(store)
    return probe


def _try_lock(store: "Store") -> None:
    """Lock something for a moment: a bucket that was not made for it, or keys that may not, are told now. StoreError.

    What is locked for it stays until a prune finds it.
    """
    from vmbackup.storage_backends import DeleteRefused

    key = f"probe/{secrets.token_hex(8)}"
    store.put(key, b"vmbackup probe: locked for a second\n")
    try:
        store.lock(key, 1.0)
    finally:
        with suppress(DeleteRefused):
            store.delete(key)


def _secret(name: str, settings: "Settings") -> tuple["Secret", bool]:
    """What the repository will open with, and whether its passphrase file was made just now."""
    from vmbackup.cli import access
    from vmbackup.config.secrets import make_passphrase_file
    from vmbackup.repository.keys import Secret

    file = settings.passphrase_file
    if file is not None and not file.exists():
        return Secret.passphrase(make_passphrase_file(file), random=True), True
    return Secret.passphrase(access.passphrase_of(name, settings, confirm=True)), False
