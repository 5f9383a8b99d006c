"""`vmbackup run`: asks the service for the backups of a job now, and waits for them and their copies if told."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from vmbackup.cli.options import Command, State
from vmbackup.cli.run_copies import FollowingCopies, copy_of

if TYPE_CHECKING:
    from vmbackup.cli.control import Control
    from vmbackup.progress import Progress

_POLL_SECONDS = 0.5
_MISSING_POLLS = 20  # so often a run may be neither under way nor in the history, before it counts as skipped
_HISTORY = 1000  # runs: the most that the service tells at once
_GOOD = ("success", "warning")


@click.command("run", cls=Command, short_help="Let the service back up the guests of a job now.")
@click.argument("job")
@click.argument("domains", metavar="[DOMAIN...]", nargs=-1)
@click.option("--full", is_flag=True, help="Ignore checkpoints and read everything; nothing is stored twice.")
@click.option("--wait", is_flag=True, help="Wait for the end of all, copies too, and show how far they are.")
@click.pass_obj
def command(state: State, job: str, domains: tuple[str, ...], full: bool, wait: bool) -> int:
    """Put backups of all guests of JOB, or of DOMAIN alone, into the queue of the service.

    They run as scheduled ones do: within the limits, no guest twice at once, copies after them. With --wait the exit
    code is 3 where only a copy failed.
    """
    from vmbackup.cli import access
    from vmbackup.cli.control import Control, socket_path
    from vmbackup.cli.output import counted, say, say_json

    control = Control(socket_path(state))
    ids = control.run(job, list(dict.fromkeys(domains)), full=full)
    if not wait:
        if state.json:
            say_json({"requests": ids})
        else:
            say(f"{counted(len(ids), 'backup')} asked for{': ' if ids else ''}{', '.join(ids)}")
            say("'vmbackup status --watch' shows them, 'vmbackup cancel ID' ends one")
        return 0
    with access.progress(state) as progress:
        ended, copies = _waited(control, ids, progress)
    if state.json:
        say_json({"requests": ids, "runs": ended, "copies": copies})
    else:
        for run in (*ended, *copies):
            say(_text(run))
    return exit_code(ended, copies)


def _waited(
    control: "Control", ids: Sequence[str], progress: "Progress"
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What came of the backups, and of their copies."""
    try:
        waiting = Waiting(control.status, lambda: control.runs(_HISTORY), progress)
        ended = waiting.wait(ids)
        return ended, waiting.wait_for_copies(ended)
    except KeyboardInterrupt:
        click.echo("The backups go on: 'vmbackup status' shows them, 'vmbackup cancel ID' ends one.", err=True)
        raise


@dataclass
class Waiting:
    """Looks at runs until they have ended. `status` and `history` ask the service."""

    status: Callable[[], Mapping[str, Any]]
    history: Callable[[], Sequence[Mapping[str, Any]]]
    progress: "Progress"
    sleep: Callable[[float], None] = time.sleep
    _shown: dict[str, int] = field(default_factory=dict)  # bytes that were told, by the run's id
    _missing: dict[str, int] = field(default_factory=dict)  # polls

    def wait(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """The outcome of each, in this order: the history's entry, with `next_attempt` where it is tried again."""
        ended: dict[str, dict[str, Any]] = {}
        while True:
            document = self.status()
            going = {run["id"]: run for run in document["runs"]}
            open_ids = [name for name in ids if name not in ended]
            self._show(going[name] for name in open_ids if name in going)
            gone = [name for name in open_ids if name not in going]
            ended |= self._ended(gone, document["runs"]) if gone else {}
            if len(ended) == len(set(ids)):
                return [ended[name] for name in ids]
            self.sleep(_POLL_SECONDS)

    def wait_for_copies(self, backups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The outcome of each copy that follows these backups, which have ended; as `wait` gives it."""
        good = [run for run in backups if run["status"] in _GOOD]
        if not good:
            return []
        document = self.status()
        copies = FollowingCopies.of(good, document["guests"], _MISSING_POLLS)
        while copies.open():
            self._show(run for run in document["runs"] if copy_of(run) in copies.open())
            copies.look(document["runs"], self.history)
            if copies.open():
                self.sleep(_POLL_SECONDS)
                document = self.status()
        for run in copies.ended.values():
            run["next_attempt"] = _next_attempt(run, document["runs"])
            if run["id"] in self._shown:
                self.progress.finish(_name(run))
        return [copies.ended[copy] for copy in copies.wanted]

    def _show(self, runs: Iterable[Mapping[str, Any]]) -> None:
        for run in runs:
            told, name = run["progress"], _name(run)
            if run["state"] == "queued" or not told["done_bytes"]:
                continue
            if run["id"] not in self._shown:
                self.progress.start(name, told["total_bytes"])
            self.progress.advance(name, max(0, told["done_bytes"] - self._shown.get(run["id"], 0)))
            self._shown[run["id"]] = max(told["done_bytes"], self._shown.get(run["id"], 0))

    def _ended(self, gone: Sequence[str], runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        known = {run["id"]: run for run in self.history()}
        found = {}
        for name in gone:
            if name in known:
                found[name] = dict(known[name]) | {"next_attempt": _next_attempt(known[name], runs)}
                if name in self._shown:
                    self.progress.finish(_name(known[name]))
            elif self._missing.setdefault(name, 0) >= _MISSING_POLLS:
                found[name] = {"id": name, "domain": None, "status": "skipped", "error": None, "exit_code": None}
            else:
                self._missing[name] += 1
        return found


def _name(run: Mapping[str, Any]) -> str:
    """As people are told."""
    name = str(run["domain"] or run["id"])
    return f"{name} to {run['target']}" if run.get("target") else name


def _next_attempt(ended: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> str | None:
    """When what failed is tried again, None where it is not."""
    same = ("kind", "job", "domain", "repository", "target")
    for run in runs:
        if run["trigger"] == "retry" and all(run[name] == ended[name] for name in same):
            return str(run["not_before"])
    return None


def _text(run: Mapping[str, Any]) -> str:
    """The outcome of one, for people."""
    from vmbackup.cli.ages import long_time
    from vmbackup.cli.output import clean

    name, status = _name(run), run["status"]
    if status == "skipped":
        return clean(f"{name}: did not run; 'journalctl -u vmbackup' tells why")
    told = f"{name}: {'done' if status == 'success' else 'done, with warnings' if status == 'warning' else status}"
    told += f": {run['error']}" if run["error"] else ""
    hint = f"\n  {run['hint']}" if run.get("hint") else ""
    again = f"\n  it is tried again on {long_time(run['next_attempt'])}" if run.get("next_attempt") else ""
    return clean(f"{told}{hint}{again}")


def exit_code(ended: Sequence[Mapping[str, Any]], copies: Sequence[Mapping[str, Any]] = ()) -> int:
    """0 where all are good; of a single one its own; 1 where all failed; else 3, also where only a copy failed."""
    bad = [run for run in ended if run["status"] not in _GOOD]
    if bad and len(ended) == 1:
        return int(bad[0]["exit_code"] or 1)
    if bad:
        return 1 if len(bad) == len(ended) else 3
    return 3 if any(run["status"] != "success" for run in (*ended, *copies)) else 0
