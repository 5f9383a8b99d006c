"""The options of every command, and what they add up to."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from vmbackup.errors import UsageError


@dataclass
class State:
    """What the global options say: one object a run, filled while the command line is parsed."""

    config: str | None = None
    repository: str | None = None
    json: bool = False
    verbose: int = 0
    quiet: bool = False
    debug: bool = False
    progress_fd: int | None = None


def global_options(*, hidden: bool) -> list[click.Parameter]:
    """The global options; commands have them too, hidden from their help, so that any order works."""
    shared: dict[str, Any] = {"expose_value": False, "is_eager": True, "callback": _store, "hidden": hidden}
    return [
        click.Option(
            ["--config"],
            metavar="FILE",
            help="The configuration; else $VMBACKUP_CONFIG, else /etc/vmbackup/config.toml.",
            **shared,
        ),
        click.Option(
            ["--repository"],
            metavar="NAME",
            help="A repository of the configuration; else its first.",
            **shared,
        ),
        click.Option(["--json"], is_flag=True, help="One JSON document on standard output.", **shared),
        click.Option(["-v", "--verbose"], count=True, help="Tell more; twice for every step.", **shared),
        click.Option(["-q", "--quiet"], is_flag=True, help="No progress, no notes.", **shared),
        click.Option(["--debug"], is_flag=True, help="Every step, and tracebacks of errors.", **shared),
        # For the service: see wire.py.
        click.Option(["--progress-fd"], type=click.IntRange(min=1), **{**shared, "hidden": True}),
    ]


class Group(click.Group):
    """A group of commands, with a hint for their names."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with the nearest command as a hint."""
        known = self.list_commands(ctx)
        if args and not args[0].startswith("-") and args[0] not in known:
            from vmbackup.config.mistakes import did_you_mean

            hint = did_you_mean(args[0], known) or f"use one of {', '.join(known)}"
            raise UsageError(f'there is no command "{self.name} {args[0]}"', hint)
        return super().resolve_command(ctx, args)


class Command(click.Command):
    """A command that takes the global options too, and starts the log before it runs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += global_options(hidden=True)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command with its log set up as the options ask."""
        from vmbackup.cli.log import start_log

        state = ctx.ensure_object(State)
        if state.verbose and state.quiet:
            raise click.UsageError("-v and -q exclude each other", ctx)
        start_log(state)
        if state.progress_fd is not None:
            from vmbackup.cli.wire import end_with_parent

            end_with_parent(state.progress_fd)
        return super().invoke(ctx)


def _store(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value and parameter.name:
        setattr(ctx.ensure_object(State), parameter.name, value)


def new_passphrase_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--passphrase-file` of what makes a new passphrase."""
    return click.option(
        "--passphrase-file",
        "file",
        metavar="FILE",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Holds the new passphrase; else it is asked for.",
    )(command)
