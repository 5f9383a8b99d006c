"""`vmbackup status` as lines: the worst first, then runs, repositories, and a table of all guests."""

from collections.abc import Sequence
from datetime import datetime

from rich.text import Text

from vmbackup.cli.ages import Age, Standing, ago, long_time, short_time, span
from vmbackup.cli.grid import Forms, Row, folded, forms, grid, text
from vmbackup.cli.output import counted
from vmbackup.cli.overview import BAD, DOUBTFUL, GOOD, Guest, Json, Overview, down, failed, upkeep
from vmbackup.config.units import format_duration, format_size

_QUEUED = 5  # requests that are shown
LONGEST = 300  # characters of an error in the table; `status DOMAIN` has all of it
_DIM = "dim"
RESULTS = {
    "success": ("ok", "green"),
    "warning": ("warned", "yellow"),
    "failed": ("FAILED", BAD),
    "cancelled": ("cancelled", "yellow"),
}


def page(overview: Overview, width: int | None, height: int | None = None) -> list[Text]:
    """All lines, `width` cells wide (None: as wide as they get).

    With a `height` there are no more lines than that, and guests that do not fit are counted.
    """
    top = [*_verdict(overview, width), *_problems(overview, width)]
    for section in (_runs(overview, width), _repositories(overview, width)):
        top += [Text(), *section] if section else []
    table = _guests(overview, overview.guests[:height], width)
    if table:
        top.append(Text())
    if height is None:
        return [*top, *(line for row in table for line in row)]
    return _cut(top, table, overview, height)


def _cut(top: list[Text], table: list[list[Text]], overview: Overview, height: int) -> list[Text]:
    """As many guests as fit, the worst first; how many are left out, and how they stand."""
    lines = list(top)
    for shown, row in enumerate(table):
        left = overview.guests[max(shown - 1, 0) :]
        if len(lines) + len(row) + (len(overview.guests) > shown) > height:
            return [*lines[: height - 1], text(f"and {_summed(left)}", _DIM)]
        lines += row
    return lines[:height]


def _summed(guests: Sequence[Guest]) -> str:
    """How many stand how."""
    counts = [(s.word.lower(), sum(g.age.standing is s for g in guests)) for s in Standing if s is not Standing.NONE]
    told = ", ".join(f"{count} {word}" for word, count in counts if count)
    more = f"{counted(len(guests), 'more guest')}" if guests else "more"
    return f"{more}: {told}" if told else more


def _verdict(overview: Overview, width: int | None) -> list[Text]:
    said, now = overview.document, overview.now
    up = span((now - datetime.fromisoformat(said["started"])).total_seconds())
    head = text(f"vmbackup on {said['host']}, {long_time(said['now'])}, up for {up}", _DIM)
    worst = overview.verdict
    style = BAD if worst else GOOD if overview.guests and not any(p.bad for p in overview.problems) else DOUBTFUL
    sentence = worst.sentence if worst else overview.all_well()
    return [*folded(head, width), *folded(text(sentence, style), width)]


def _problems(overview: Overview, width: int | None) -> list[Text]:
    marks = [(text(p.sentence, p.style), "! " if p.bad else "- ") for p in overview.problems]
    return [line for sentence, mark in marks for line in folded(sentence, width, mark=mark)]


def _runs(overview: Overview, width: int | None) -> list[Text]:
    going = [run for run in overview.runs if run["state"] != "queued"]
    waiting = sorted((run for run in overview.runs if run["state"] == "queued"), key=lambda run: str(run["not_before"]))
    if not going and not waiting:
        return []
    rows = [Row(_what(run), _progress(run), _note(run)) for run in going]
    rows += [Row(_what(run), [_id(run), _start(run, overview.now), forms(""), forms("")]) for run in waiting[:_QUEUED]]
    lines = [line for row in grid(["RUNS", "ID", "DONE", "RATE", "LEFT"], rows, width) for line in row]
    more = len(waiting) - _QUEUED
    return [*lines, text(f"and {more} more in the queue", _DIM)] if more > 0 else lines


def _what(run: Json) -> Text:
    on = run["domain"] or run["repository"]
    return text(f"{run['kind']} {on} to {run['target']}" if run["target"] else f"{run['kind']} {on}")


def _id(run: Json) -> Forms:
    return forms(run["id"])


def _progress(run: Json) -> list[Forms]:
    done, total = run["progress"]["done_bytes"], run["progress"]["total_bytes"]
    rate = run["progress"]["bytes_per_second"]
    if run["state"] != "running":
        part = forms("being cancelled", "ending", style=DOUBTFUL)
    elif total:
        share = percent(run)
        part = forms(f"{share} of {format_size(total)}", f"{share} of {format_size(total)}", share)
    else:
        part = forms(format_size(done) if done else "begun")
    left = format_duration((total - done) / rate) if total and rate and done < total else ""
    return [_id(run), part, forms(f"{format_size(int(rate))}/s" if rate else ""), forms(left)]


def percent(run: Json) -> str:
    """How far a run is, "" where that cannot be known."""
    done, total = run["progress"]["done_bytes"], run["progress"]["total_bytes"]
    return f"{min(100, done * 100 // total)} %" if total else ""


def _note(run: Json) -> list[Text]:
    note = run["progress"]["note"]
    return [text(note, _DIM)] if note else []


def _start(run: Json, now: datetime) -> Forms:
    at = datetime.fromisoformat(run["not_before"]) if run["not_before"] else now
    when = f"at {short_time(run['not_before'], now)}" if at > now else "waits for its turn"
    return forms(f"{when}, attempt {run['attempt']}" if run["attempt"] > 1 else when, "queued" if at <= now else when)


def _repositories(overview: Overview, width: int | None) -> list[Text]:
    rows = []
    for repository in overview.repositories:
        state = forms("up", style="green") if repository["up"] else forms("DOWN", style=BAD)
        if not repository["up"] and not down(repository):
            state = forms("not looked at yet", "unknown")
        size = format_size(repository["bytes"]) if repository["bytes"] is not None else "-"
        cells = [state, forms(size), forms(str(repository["points"]))]
        cells += [forms(age.text(), style=age.standing.style) for _, age in upkeep(repository, overview.now)]
        rows.append(Row(text(repository["name"]), [*cells, forms(repository["url"], "", "")]))
    titles = ["REPOSITORY", "STATE", "SIZE", "POINTS", "PRUNED", "VERIFIED", ("ADDRESS", "", "")]
    return [line for row in grid(titles, rows, width) for line in row] if rows else []


def _guests(overview: Overview, guests: Sequence[Guest], width: int | None) -> list[list[Text]]:
    """The title's line, then the lines of each of these guests."""
    if not guests:
        return []
    runs = {run["id"]: run for run in overview.runs}
    drills = any(guest.drill for guest in overview.guests)
    jobs = len({guest.state["job"] for guest in overview.guests}) > 1
    rows, before = [], ""
    for guest in guests:
        cells = [*_standing(guest), _next(guest, runs), _result(guest)]
        cells += [_drill(guest)] if drills else []
        cells += [forms(guest.state["job"], "", "")] if jobs else []
        notes, before = _notes(guest, overview, before)
        rows.append(Row(text(guest.name), cells, notes))
    titles: list[str | tuple[str, ...]] = ["GUEST", "STATE", "AGE OF MAX", "LAST GOOD", "NEXT RUN", "LAST RUN"]
    titles += ["DRILL"] if drills else []
    titles += [("JOB", "", "")] if jobs else []
    return grid(titles, rows, width)


def _standing(guest: Guest) -> list[Forms]:
    standing, good = guest.age.standing, guest.state["last_success"]
    return [
        forms(standing.word, style=standing.style),
        forms(guest.age.text(), style=standing.style),
        forms(long_time(good), short_time(good, guest.now)),
    ]


def _next(guest: Guest, runs: dict[str, Json]) -> Forms:
    run, following = runs.get(guest.state["running"] or ""), guest.state["next_run"]
    if run is not None:
        share = percent(run)
        return forms(f"running {share}".strip(), share or "running", style="cyan")
    if guest.state["queued"] and (not following or datetime.fromisoformat(following) <= guest.now):
        return forms("queued", style="cyan")
    return forms(long_time(following), short_time(following, guest.now))


def _result(guest: Guest) -> Forms:
    run = guest.state["last_run"]
    if run is None:
        return forms("-")
    word, style = RESULTS.get(run["status"], (run["status"], ""))
    when = short_time(run["finished"] or run["started"], guest.now)
    attempt = f", attempt {run['attempt']}" if run["attempt"] > 1 else ""
    return forms(f"{word} {when}{attempt}", f"{word} {when}", word, style=style)


def _drill(guest: Guest) -> Forms:
    drill, age = guest.state["drill"], guest.drill
    if age is None:
        return forms("-")
    if failed(drill["last_run"]):
        return forms(f"FAILED {ago(drill['last_run']['started'], guest.now)}", "FAILED", style=BAD)
    if age.seconds is None:
        return forms("never", style=BAD) if age.standing.bad else forms("not yet")
    if age.standing is Standing.BROKEN:
        return forms(f"LATE, {span(age.seconds)} ago", "LATE", style=BAD)
    return forms(f"ok {span(age.seconds)} ago", f"ok {span(age.seconds)}", style="green")


def _notes(guest: Guest, overview: Overview, before: str) -> tuple[list[Text], str]:
    """What stands beneath a guest; an error that stands above already is not told again."""
    notes = []
    run = guest.state["last_run"]
    error = _error(run) if failed(run) else ""
    if error:
        notes.append(text("the same error as above" if error == before else error, "red"))
    if not guest.state["present"] and overview.document["libvirt_up"]:
        notes.append(text("libvirt does not know this guest any more", "yellow"))
    for copy, age in guest.copies:
        notes += [text(sentence, "red") for sentence in _copy(copy, age)]
    drill = guest.state["drill"]
    if drill and failed(drill["last_run"]):
        notes.append(text(f"drill: {_error(drill['last_run'])}", "red"))
    return notes, error or before


def _error(run: Json) -> str:
    error = str(run["error"] or "it ended without a word")
    return error if len(error) <= LONGEST else f"{error[:LONGEST]}..."


def _copy(copy: Json, age: Age) -> list[str]:
    if failed(copy["last_run"]):
        return [f"the copy to {copy['repository']} failed: {_error(copy['last_run'])}"]
    return [f"the copies in {copy['repository']} are too old: {age.text()}"] if age.standing.bad else []
