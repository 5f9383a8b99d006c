"""`vmbackup status`: how the guests of this host stand, asked of the running service."""

import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from vmbackup.cli.options import Command, State
from vmbackup.errors import NotFoundError, ServiceError, UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from vmbackup.cli.control import Control
    from vmbackup.cli.overview import Json, Overview

_RECENT = 10  # runs of a guest that are shown
_WATCH_SECONDS = 1.0  # between two looks: as often as anyone reads


@click.command("status", cls=Command, short_help="How the guests stand, by the running service.")
@click.argument("domain", required=False)
@click.option("--watch", is_flag=True, help="Stay, and show what changes, until Ctrl-C.")
@click.pass_obj
def command(state: State, domain: str | None, watch: bool) -> int:
    """Show each guest, or DOMAIN alone: its last restore point, its promise, its next run, what failed.

    The exit code is 3 where a promise is broken, a run failed or a repository is down.
    """
    from vmbackup.cli.control import Control, socket_path
    from vmbackup.cli.output import say_json
    from vmbackup.cli.overview import Overview

    console = _watching_console(state) if watch else None
    control = Control(socket_path(state))
    document = control.status()
    _check_known(document, domain)
    if console is not None:
        return _watch(console, control, domain, document)
    overview = Overview(document, domain)
    if state.json:
        say_json(_of_domain(document, domain) if domain else document)
    else:
        _show(overview, control.runs(_RECENT, domain) if domain else ())
    return overview.exit_code


def _check_known(document: dict[str, Any], domain: str | None) -> None:
    from vmbackup.config.mistakes import did_you_mean

    known = [guest["domain"] for guest in document["guests"]]
    if domain is None or domain in known:
        return
    hint = did_you_mean(domain, known) or "'vmbackup status' shows all that it backs up"
    raise NotFoundError(f'the service backs up no domain "{domain}"', hint)


def _of_domain(document: dict[str, Any], domain: str) -> dict[str, Any]:
    parts = {name: [one for one in document[name] if one["domain"] == domain] for name in ("guests", "runs")}
    return document | parts


def _show(overview: "Overview", recent: "Sequence[Json]") -> None:
    """Once, as wide as the terminal; into a pipe or file as wide as it gets, unless $COLUMNS says otherwise."""
    from vmbackup.cli.grid import text
    from vmbackup.cli.status_guest import details
    from vmbackup.cli.status_page import page

    console = _console()
    columns = os.environ.get("COLUMNS", "")
    width = console.width if console.is_terminal else int(columns) if columns.isdecimal() and int(columns) else None
    lines = page(overview, width)
    lines += details(overview, recent, width) if overview.alone else []
    _print(console, lines)
    if console.is_terminal and len(lines) >= console.height and overview.worst:
        _print(console, [text(overview.worst.sentence, overview.worst.style)])  # the top has left the screen by now


def _print(console: "Console", lines: "list[Text]") -> None:
    for line in lines:
        console.print(line, soft_wrap=True)


def _console() -> "Console":
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False)


def _watching_console(state: State) -> "Console":
    if state.json:
        raise UsageError("--watch and --json exclude each other", "leave --watch away, and ask again when it suits")
    console = _console()
    if not console.is_terminal or console.is_dumb_terminal:
        raise UsageError("--watch needs a terminal", "leave it away; with --json the answer suits a script")
    return console


def _watch(console: "Console", control: "Control", domain: str | None, document: dict[str, Any]) -> int:
    """Shows it anew every second until Ctrl-C; a service that is gone is waited for."""
    from rich.live import Live

    gone = ""
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(_screen(console, document, domain, gone), refresh=True)
                time.sleep(_WATCH_SECONDS)
                try:
                    document, gone = control.status(), ""
                except ServiceError as error:
                    gone = f"{error.message}: {error.hint}"
    except KeyboardInterrupt:
        return 0


def _screen(console: "Console", document: dict[str, Any], domain: str | None, gone: str) -> "Text":
    from rich.text import Text

    from vmbackup.cli.grid import folded, text
    from vmbackup.cli.overview import BAD, Overview
    from vmbackup.cli.status_page import page

    width, height = console.size
    above = folded(text(gone, BAD), width) if gone else []
    lines = [*above, *page(Overview(document, domain), width, height - len(above))]
    screen = Text("\n", no_wrap=True, overflow="crop", end="").join(lines)
    screen.no_wrap, screen.overflow = True, "crop"
    return screen
