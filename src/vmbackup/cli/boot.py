"""`vmbackup boot`: a guest that runs from the repository at once, and what becomes of it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmbackup.cli.options import Command, State
from vmbackup.errors import UsageError

if TYPE_CHECKING:
    from vmbackup.config.models import Config
    from vmbackup.engine.boot.boot import Boots

_HINT = "'vmbackup boot POINT --name NEW' boots, 'boot --list' shows what hangs on a repository"


@click.command("boot", cls=Command, short_help="Run a guest from the repository at once.")
@click.argument("point", required=False, metavar="[POINT]")
@click.option("--name", metavar="NEW", help="The name of the new guest.")
@click.option(
    "--network", metavar="none|NAME", help="Connect it to this network or bridge; without, it has no interface."
)
@click.option("--finish", metavar="NEW", help="Move a booted guest to local disks while it runs.")
@click.option(
    "--output",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="With --finish: the folder of its disks; else /var/lib/libvirt/images/NEW.",
)
@click.option("--discard", metavar="NEW", help="End a booted guest and remove all of it.")
@click.option("--start", metavar="NEW", help="Serve and start a booted guest again, as after a restart of the host.")
@click.option("--list", "listed", is_flag=True, help="The guests that hang on a repository.")
@click.option("--keep", metavar="NEW", hidden=True, help="Serve a booted guest's point until it hangs on it no more.")
@click.pass_obj
def command(
    state: State,
    point: str | None,
    name: str | None,
    network: str | None,
    finish: str | None,
    output: Path | None,
    discard: str | None,
    start: str | None,
    listed: bool,
    keep: str | None,
) -> int:
    """Start a new guest from a restore point within seconds, whatever the size of its disks.

    What it reads comes from the repository, what it writes stays on this host. --finish moves it to local disks while
    it runs, --discard ends it. POINT is an id, a prefix of it, DOMAIN, DOMAIN@latest or DOMAIN@TIME.
    """
    asked = {"--finish": finish, "--discard": discard, "--start": start, "--list": listed, "--keep": keep}
    given = [option for option, value in asked.items() if value]
    if len(given) + (point is not None) > 1:
        raise UsageError(f"{' and '.join(given)} {'goes' if len(given) == 1 else 'go'} alone", _HINT)
    if output is not None and not finish:
        raise UsageError("--output goes with --finish", _HINT)
    if (name or network) and point is None:
        raise UsageError("--name and --network go with a restore point", _HINT)
    if finish:
        return _finish(state, finish, output)
    if discard:
        return _discard(state, discard)
    if start:
        return _start(state, start)
    if listed:
        return _list(state)
    if keep:
        return _keep(state, keep)
    if point is None or name is None:
        raise UsageError("the restore point to boot, or its new name, is missing", _HINT)
    return _boot(state, point, name, network)


def _boot(state: State, text: str, name: str, network: str | None) -> int:
    from vmbackup.cli import access
    from vmbackup.cli.boot_output import booted_document, booted_text
    from vmbackup.cli.output import say, say_json, warn
    from vmbackup.engine.boot.boot import BootOptions
    from vmbackup.repository.resolve import resolve

    config = access.load_config(state)
    repository_name, settings = access.named_repository(config, state.repository)
    access.check_unattended(repository_name, settings)
    with _boots(state, config) as boots:
        boots.check_free(name)
        with access.opened_repository(config, repository_name) as repository, access.progress(state) as progress:
            point = resolve(repository.survey(), text, domains=True)
            serve = ("--repository", repository_name, *_config_arguments(state), "serve", "--hold", point.key)
            options = BootOptions(name, None if network == "none" else network, serve)
            done = boots.boot(repository, point, options, progress)
    if state.json:
        say_json(booted_document(done) | {"point_warnings": list(point.warnings)})
    else:
        say(booted_text(done))
        for warning in (*point.warnings, *done.warnings):
            warn(warning)
    return 3 if done.warnings else 0


def _finish(state: State, name: str, output: Path | None) -> int:
    from vmbackup.cli import access
    from vmbackup.cli.boot_output import finished_document, finished_text
    from vmbackup.cli.output import say, say_json
    from vmbackup.engine.boot.finish import Finish

    config = access.load_config(state)
    with _boots(state, config) as boots, access.progress(state) as progress:
        done = Finish(boots, progress).run(name, output.absolute() if output else None)
    if state.json:
        say_json(finished_document(done))
    else:
        say(finished_text(done))
    return 0


def _discard(state: State, name: str) -> int:
    from vmbackup.cli import access
    from vmbackup.cli.output import say, say_json

    with _boots(state, access.load_config(state)) as boots:
        booted = boots.discard(name)
    if state.json:
        say_json({"discarded": booted.name, "point": booted.point})
    else:
        say(f"{booted.name} is discarded; restore point {booted.point} is as it was")
    return 0


def _start(state: State, name: str) -> int:
    from vmbackup.cli import access
    from vmbackup.cli.output import say, say_json

    with _boots(state, access.load_config(state)) as boots:
        booted = boots.start(name)
    if state.json:
        say_json({"started": booted.name, "point": booted.point})
    else:
        say(f"{booted.name} runs, from restore point {booted.point}")
    return 0


def _list(state: State) -> int:
    from vmbackup.cli import access
    from vmbackup.cli.boot_output import listed_document, listed_text
    from vmbackup.cli.output import say, say_json

    with _boots(state, access.load_config(state)) as boots:
        found = boots.list()
    if state.json:
        say_json(listed_document(found))
    else:
        say(listed_text(found))
    return 0


def _keep(state: State, name: str) -> int:
    """The process that keeps the server of a booted guest: started by the others, ended by them or by SIGTERM."""
    import contextlib

    from vmbackup.cli import access
    from vmbackup.engine.boot.keeper import Keeper
    from vmbackup.engine.boot.records import BootStore
    from vmbackup.hypervisor.started.booted import BootedDomain

    config = access.load_config(state)
    store = BootStore(config.daemon.state_dir)
    booted = store.require(name)
    with contextlib.ExitStack() as stack:

        def guest() -> BootedDomain:
            host = stack.enter_context(access.opened_host(config))
            return BootedDomain(host.connection, booted.uuid, booted.name)

        with contextlib.suppress(KeyboardInterrupt):
            Keeper(store, booted, _program(), guest).run()
    return 0


@contextmanager
def _boots(state: State, config: "Config") -> Iterator["Boots"]:
    from vmbackup.cli import access
    from vmbackup.engine.boot.boot import Boots
    from vmbackup.engine.boot.keeping import Keeping
    from vmbackup.engine.boot.records import BootStore

    store = BootStore(config.daemon.state_dir)
    access.make_folder(config.daemon.state_dir)
    command = [*_program(), *_config_arguments(state), "boot", "--keep"]
    with access.opened_host(config) as host:
        yield Boots(host, store, Keeping(store, command))


def _program() -> list[str]:
    """The vmbackup that runs; a folder in which it was started must not lend its modules."""
    return [sys.executable, "-P", "-m", "vmbackup.cli"]


def _config_arguments(state: State) -> tuple[str, ...]:
    """What makes another process read the same configuration."""
    from vmbackup.config.load import find

    path = find(state.config)
    return ("--config", str(path.absolute())) if path else ()
