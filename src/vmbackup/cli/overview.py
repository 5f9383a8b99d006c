"""What the service's document comes to: who stands how, worst first, and what an operator must know."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from vmbackup.cli.ages import Age, Standing, short_time
from vmbackup.cli.output import counted

Json = Mapping[str, Any]
_SHOWN = 8  # names in a sentence
BAD, DOUBTFUL, GOOD = "bold red", "bold yellow", "bold green"


@dataclass(frozen=True)
class Problem:
    """A sentence; `bad` ones make the exit code 3."""

    sentence: str
    bad: bool = True

    @property
    def style(self) -> str:
        """For rich."""
        return BAD if self.bad else DOUBTFUL


@dataclass(frozen=True)
class Guest:
    """A domain under a job. `name` has the job in it where the domain is under several."""

    state: Json
    name: str
    now: datetime

    @cached_property
    def age(self) -> Age:
        """Of its newest good restore point."""
        following = None if self.state["running"] else self.state["next_run"]
        return Age.of(self.state["last_success"], self.state["max_age"], self.now, following)

    @cached_property
    def copies(self) -> list[tuple[Json, Age]]:
        """Its copies elsewhere, and how old their newest points are."""
        since = self.state["known_since"]
        return [(copy, Age.first(copy["last"], copy["max_age"], self.now, since)) for copy in self.state["copies"]]

    @cached_property
    def drill(self) -> Age | None:
        """How long ago a drill succeeded; None where there are none."""
        drill, since = self.state["drill"], self.state["known_since"]
        return Age.first(drill["last_success"], drill["max_age"], self.now, since) if drill else None

    @property
    def failed(self) -> bool:
        """Whether its last run did."""
        return failed(self.state["last_run"])

    @property
    def troubled(self) -> bool:
        """Whether anything about it is bad beyond the promise of its backups."""
        copies = any(age.standing.bad or failed(copy["last_run"]) for copy, age in self.copies)
        drills = self.drill is not None and (self.drill.standing.bad or failed(self.state["drill"]["last_run"]))
        return self.failed or copies or drills

    @property
    def rank(self) -> tuple[float, ...]:
        """To sort by, worst first."""
        order = (Standing.BROKEN, Standing.NEVER, Standing.CLOSE, Standing.KEPT, Standing.NEW, Standing.NONE)
        place = float(order.index(self.age.standing))
        return (min(place, 1.5) if self.troubled else place, -self.age.share)


def failed(run: Json | None) -> bool:
    """Whether a last run is there and failed."""
    return run is not None and run["status"] == "failed"


class Overview:
    """Reads GET /status; with `domain`, that guest only."""

    def __init__(self, document: Json, domain: str | None = None) -> None:
        self.document = document
        self.now = datetime.fromisoformat(document["now"])
        states = [state for state in document["guests"] if domain in (None, state["domain"])]
        self.guests = sorted(self._named(states), key=lambda guest: (*guest.rank, guest.name))
        self.repositories: Sequence[Json] = document["repositories"] if domain is None else []
        self.runs = [run for run in document["runs"] if domain in (None, run["domain"])]
        self.alone = domain is not None

    def _named(self, states: Sequence[Json]) -> Iterator[Guest]:
        jobs = Counter(state["domain"] for state in states)
        for state in states:
            several = jobs[state["domain"]] > 1
            yield Guest(state, f"{state['domain']} ({state['job']})" if several else state["domain"], self.now)

    @property
    def exit_code(self) -> int:
        """0 where all is known to be kept, else 3."""
        bad = self._of(Standing.BROKEN) or self._of(Standing.NEVER)
        starting = self.document["state"] == "starting"  # nothing is known yet
        return 3 if bad or starting or any(problem.bad for problem in self.problems) else 0

    @cached_property
    def verdict(self) -> Problem | None:
        """The worst in one sentence; None where no promise is broken."""
        broken, never, total = self._of(Standing.BROKEN), self._of(Standing.NEVER), len(self.guests)
        none = f"{'has' if len(never) == 1 else 'have'} no restore point: {names(never)}"
        if self.alone and (broken or never):
            return Problem("The promise is broken" if broken else "There is no restore point")
        if broken:
            does, whose = ("breaks", "its") if len(broken) == 1 else ("break", "their")
            rest = f"; {len(never)} {none}" if never else ""
            return Problem(f"{len(broken)} of {counted(total, 'guest')} {does} {whose} promise: {names(broken)}{rest}")
        return Problem(f"{len(never)} of {counted(total, 'guest')} {none}") if never else None

    @property
    def worst(self) -> Problem | None:
        """The one thing to know, None where all is well."""
        return self.verdict or next((problem for problem in self.problems if problem.bad), None)

    def all_well(self) -> str:
        """The sentence for when no promise is broken."""
        promised = [guest for guest in self.guests if guest.age.standing is not Standing.NONE]
        if self.alone:
            return "The promise is kept" if promised else "Nothing is promised: the job has no max_age"
        if not self.guests:
            return "No guest is backed up: no job of the configuration means one"
        if not promised:
            return f"{counted(len(self.guests), 'guest')}; nothing is promised: no job has a max_age"
        if len(promised) == 1:
            kept = f"The promise to {promised[0].name} is kept"
        else:
            kept = f"All promises to {len(promised)} guests are kept"
        rest = len(self.guests) - len(promised)
        return f"{kept}; {rest} more without one" if rest else kept

    @cached_property
    def problems(self) -> list[Problem]:
        """Everything else that somebody should know, the worst first."""
        found = [*self._of_guests(), *self._of_repositories()]
        if not self.alone:
            found = [*self._of_service(), *found, *self._doubts()]
        return sorted(found, key=lambda problem: not problem.bad)

    def _of(self, standing: Standing) -> list[Guest]:
        return [guest for guest in self.guests if guest.age.standing is standing]

    def _of_service(self) -> Iterator[Problem]:
        said = self.document
        if said["state"] != "running":
            yield Problem(f"The service is {said['state']}", bad=False)
        if not said["config_ok"]:
            loaded = short_time(said["config_loaded"], self.now)
            yield Problem(f"The configuration is wrong; the one of {loaded} is in force: {said['config_error']}")
        if not said["libvirt_up"] and said["libvirt_error"]:
            yield Problem(f"libvirt: {said['libvirt_error']}")

    def _of_guests(self) -> Iterator[Problem]:
        failures = [guest for guest in self.guests if guest.failed and not guest.age.standing.bad]
        if failures:
            of = "The last run" if len(failures) == 1 else f"The last runs of {len(failures)} guests"
            yield Problem(f"{of} failed, no promise is broken yet: {names(failures)}")
        copies = [g for g in self.guests if any(a.standing.bad or failed(c["last_run"]) for c, a in g.copies)]
        if copies:
            yield Problem(f"Copies are late or failed: {names(copies)}")
        drills = [g for g in self.guests if g.drill and (g.drill.standing.bad or failed(g.state["drill"]["last_run"]))]
        if drills:
            yield Problem(f"Drills are late or failed: {names(drills)}")
        close = self._of(Standing.CLOSE)
        if close:
            yield Problem(f"Close to breaking: {names(close)}", bad=False)

    def _of_repositories(self) -> Iterator[Problem]:
        for repository in self.repositories:
            name = repository["name"]
            if down(repository):
                yield Problem(f"Repository {name} is down: {repository['error']}")
            if repository["damaged_objects"]:
                damaged = counted(repository["damaged_objects"], "damaged object")
                yield Problem(f"Repository {name} has {damaged}: run 'vmbackup --repository {name} repair'")
            for what, age in upkeep(repository, self.now):
                run = repository[f"last_{what}_run"]
                if failed(run):
                    yield Problem(f"The last {what} of repository {name} failed: {run['error']}")
                elif age.standing.bad:
                    done = {"prune": "pruned", "verify": "verified"}[what]
                    yield Problem(f"Repository {name} was not {done} in time: {age.text()}")

    def _doubts(self) -> Iterator[Problem]:
        unprotected = self.document["unprotected"]
        if unprotected:
            few = "domain is" if len(unprotected) == 1 else "domains are"
            yield Problem(f"{len(unprotected)} {few} in no scheduled job: {listed(unprotected)}", bad=False)


def down(repository: Json) -> bool:
    """Whether it was looked at, in vain; a service that has just started may not have looked yet."""
    return not repository["up"] and bool(repository["error"])


def upkeep(repository: Json, now: datetime) -> Iterator[tuple[str, Age]]:
    """`prune` and `verify`, and how long ago each was done."""
    since = repository["known_since"]
    yield "prune", Age.first(repository["last_prune"], repository["prune_max_age"], now, since)
    yield "verify", Age.first(repository["last_verified"], repository["verify_max_age"], now, since)


def names(guests: Iterable[Guest]) -> str:
    """The first few names, and how many more there are."""
    return listed([guest.name for guest in guests])


def listed(words: Sequence[str]) -> str:
    """The first few words, and how many more there are."""
    more = f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN + 1 else ""
    return ", ".join(words[:_SHOWN] if more else words) + more
