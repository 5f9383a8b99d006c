"""What a command works on: the configuration, the hypervisor, a repository, a sink for progress."""

import contextlib
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmbackup.cli.options import State
from vmbackup.cli.progress import shown_progress
from vmbackup.config.mistakes import did_you_mean
from vmbackup.errors import AccessError, NotFoundError, TargetError, UsageError
from vmbackup.progress import Progress

if TYPE_CHECKING:
    from vmbackup.config.models import Config
    from vmbackup.config.models import Repository as RepositoryConfig
    from vmbackup.hypervisor import Host
    from vmbackup.repository.keys import Secret
    from vmbackup.repository.repository import Repository
    from vmbackup.repository.trust import Trust
    from vmbackup.repository.writers import WriterKeys
    from vmbackup.storage_backends import Store


def load_config(state: State) -> "Config":
    """The configuration that the options and the environment name. ConfigError."""
    from vmbackup.config.load import find, load

    return load(find(state.config))


def named_repository(config: "Config", name: str | None) -> tuple[str, "RepositoryConfig"]:
    """The repository `name` of the configuration, the first for None. NotFoundError."""
    if name is None:
        name = next(iter(config.repositories))
    if name not in config.repositories:
        known = ", ".join(config.repositories)
        hint = did_you_mean(name, config.repositories) or f"the configuration has {known}"
        raise NotFoundError(f'there is no repository "{name}" in the configuration', hint)
    return name, config.repositories[name]


def passphrase_of(name: str, repository: "RepositoryConfig", *, confirm: bool = False) -> str:
    """The passphrase of a repository, asked for (twice if `confirm`) where no source is named."""
    from vmbackup.config.secrets import read_passphrase

    def ask(text: str) -> str:
        answer = click.prompt(text, hide_input=True, confirmation_prompt=confirm, err=True)
        return str(answer)

    return read_passphrase(name, repository, ask=ask if sys.stdin.isatty() else None)


def check_unattended(name: str, repository: "RepositoryConfig") -> None:
    """Whether a process without a terminal can open the repository. AccessError where its passphrase is typed."""
    sources = (repository.passphrase_file, repository.passphrase_credential, repository.passphrase_command)
    if not any(sources) and not repository.has_writer_key:
        raise AccessError(
            f'the passphrase of repository "{name}" is typed, and this goes on without you',
            f"add passphrase_file to [repositories.{name}]",
        )


def new_passphrase(name: str, file: Path | None) -> str:
    """A further passphrase of repository `name`: out of `file`, else asked for twice on the terminal."""
    from vmbackup.config.secrets import read_passphrase_file

    if file is not None:
        return read_passphrase_file(file.absolute())
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask for the new passphrase", "name a --passphrase-file")
    answer = click.prompt(f"New passphrase of repository {name}", hide_input=True, confirmation_prompt=True, err=True)
    return str(answer)


def open_store_of(repository: "RepositoryConfig", *, create: bool = False, lockable: bool = False) -> "Store":
    """The store of a repository; with `create` its folder or bucket is made, a `lockable` one for object lock.

    Raises StoreError, ConfigError, AccessError.
    """
    from vmbackup.config.stores import s3_settings
    from vmbackup.storage_backends import open_store

    return open_store(repository.url, s3_settings(repository), create=create, lockable=lockable)


@contextlib.contextmanager
def opened_repository(config: "Config", name: str | None) -> Iterator["Repository"]:
    """The repository `name`, opened with its passphrase or writer key, closed at the end."""
    name, settings = named_repository(config, name)
    with _opened(config, settings, lambda: _key_of(name, settings)) as repository:
        yield repository


@contextlib.contextmanager
def opened_with_secret(config: "Config", name: str | None) -> Iterator[tuple["Repository", "Secret"]]:
    """The same, with the secret that opened it, to seal new keys by it. AccessError for a writer's key."""
    from vmbackup.repository.keys import Secret

    name, settings = named_repository(config, name)
    if settings.has_writer_key:
        raise AccessError("this host's key may not do that", "run it where the repository opens with the passphrase")
    secret = Secret.passphrase(passphrase_of(name, settings))
    with _opened(config, settings, lambda: secret) as repository:
        yield repository, secret


@contextlib.contextmanager
def _opened(
    config: "Config", settings: "RepositoryConfig", key: Callable[[], "Secret | WriterKeys"]
) -> Iterator["Repository"]:
    from vmbackup.cli.output import warn
    from vmbackup.repository.cache import Cache
    from vmbackup.repository.repository import Repository

    make_folder(config.daemon.state_dir)
    make_folder(config.host.cache_dir)
    store = open_store_of(settings)
    try:
        repository = Repository.open(store, key(), trust(config.daemon.state_dir))
        with contextlib.closing(Cache.of(config.host.cache_dir, repository.config.repository)) as repository.cache:
            yield repository
            if repository.cache.problem:
                warn(repository.cache.problem)
    finally:
        store.close()


def secret_of(config: "Config", name: str) -> "Secret":
    """What opens a repository for a reader, read or asked for again."""
    from vmbackup.repository.keys import Secret

    return Secret.passphrase(passphrase_of(*named_repository(config, name)))


def _key_of(name: str, settings: "RepositoryConfig") -> "Secret | WriterKeys":
    """What opens the repository. AccessError, ConfigError."""
    from vmbackup.config.secrets import read_writer_key, writer_key_path
    from vmbackup.repository.keys import Secret
    from vmbackup.repository.writers import WriterKeys

    path = writer_key_path(settings)
    if path is None:
        return Secret.passphrase(passphrase_of(name, settings))
    return WriterKeys.from_text(read_writer_key(path), str(path))


def trust(state_dir: Path) -> "Trust":
    """What this host remembers of repositories, so that none is put in place of another."""
    from vmbackup.repository.trust import Trust

    return Trust(state_dir / "repositories")


def host_name() -> str:
    """What this machine calls itself, to label what it makes."""
    return socket.gethostname()


def opened_host(config: "Config") -> "Host":
    """The hypervisor, a context manager."""
    from vmbackup.hypervisor import Host
    from vmbackup.hypervisor.remote.remote import Reach, host_of

    told = config.libvirt
    host = host_of(told.uri)
    return Host.open(
        told.uri,
        scratch_dir=str(told.scratch_dir),
        state_dir=str(config.daemon.state_dir),
        reach=Reach(host, told.nbd_tls_dir, told.nbd_address, told.nbd_ports) if host else None,
    )


def make_folder(path: Path) -> None:
    """A folder of ours, private to us. TargetError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise TargetError(f"cannot make the folder {path}: {error.strerror}", "run this as root") from None


def progress(state: State) -> contextlib.AbstractContextManager[Progress]:
    """A sink that suits the options and the terminal."""
    return shown_progress(quiet=state.quiet, fd=state.progress_fd)
