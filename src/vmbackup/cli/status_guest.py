"""`vmbackup status DOMAIN`: what the service knows of one guest beyond its line in the table."""

from collections.abc import Iterator, Sequence
from datetime import datetime

from rich.text import Text

from vmbackup.cli.ages import long_time
from vmbackup.cli.grid import Row, folded, forms, grid, text
from vmbackup.cli.output import counted
from vmbackup.cli.overview import Guest, Json, Overview
from vmbackup.cli.status_page import LONGEST, RESULTS
from vmbackup.config.units import format_duration, format_size

_NAME = 16  # cells


def details(overview: Overview, recent: Sequence[Json], width: int | None) -> list[Text]:
    """Facts of the guest under each of its jobs, then its last runs."""
    lines = []
    for guest in overview.guests:
        lines.append(Text())
        for name, value in _facts(guest):
            lines += folded(text(value), width, mark=f"{name:<{_NAME}}")
    if recent:
        rows = [_ended(run) for run in recent]
        table = grid(["LAST RUNS", "ID", "WHAT", "RESULT", "TOOK"], rows, width)
        lines += [Text(), *(line for row in table for line in row)]
    return lines


def _facts(guest: Guest) -> Iterator[tuple[str, str]]:
    state, run = guest.state, guest.state["last_run"]
    yield "job", f"{state['job']}, to repository {state['repository']}"
    points = len(state["point_times"])
    yield "restore points", f"{points}, the newest {state['last_point']}" if points else "none"
    if run and run["error"] and len(run["error"]) > LONGEST:
        yield "error", run["error"]
    if run and run["hint"]:
        yield "what to do", run["hint"]
    if state["last_success"]:
        frozen = f"file systems frozen for {format_duration(state['freeze_seconds'])}"
        yield "consistency", frozen if state["quiesce_ok"] else "as after a power cut"
    yield "verified", long_time(state["last_verified"]) if state["last_verified"] else "never"
    for copy in state["copies"]:
        yield f"in {copy['repository']}", f"newest of {long_time(copy['last'])}" if copy["last"] else "no copy yet"
    if drill := state["drill"]:
        yield "last good drill", _drilled(drill)
    totals = state["totals"]
    if totals["read_bytes"]:
        read, stored = format_size(totals["read_bytes"]), format_size(totals["stored_bytes"])
        yield "so far", f"{sum(totals['runs'].values())} runs, {read} read, {stored} stored"


def _drilled(drill: Json) -> str:
    if not drill["last_success"]:
        return "never"
    booted = f", booted in {format_duration(drill['boot_seconds'])}" if drill["boot_seconds"] else ""
    held = f", {counted(len(drill['checks']), 'check')} held" if drill["checks"] else ""
    return f"{long_time(drill['last_success'])}{booted}{held}"


def _ended(run: Json) -> Row:
    word, style = RESULTS.get(run["status"], (str(run["status"]), ""))
    what = f"{run['kind']} to {run['target']}" if run["target"] else run["kind"]
    cells = [forms(run["id"]), forms(what), forms(word, style=style), forms(_took(run))]
    return Row(text(long_time(run["started"])), cells, [text(run["error"], "red")] if run["error"] else [])


def _took(run: Json) -> str:
    if not (run["started"] and run["finished"]):
        return "-"
    begun, ended = (datetime.fromisoformat(run[name]) for name in ("started", "finished"))
    return format_duration(max(0.0, (ended - begun).total_seconds()))
