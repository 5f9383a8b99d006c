"""`vmbackup forget`: restore points that are needed no longer, by policy or by name."""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import click

from vmbackup.cli.options import Command, State
from vmbackup.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from vmbackup.config.models import Config, Job
    from vmbackup.engine.care.forget import Verdict
    from vmbackup.repository.points import Point
    from vmbackup.repository.repository import PointList, Repository
    from vmbackup.repository.retention import Rules

_COUNTS = ("last", "hourly", "daily", "weekly", "monthly", "yearly")


def _keep_options(function: Any) -> Any:
    for word in reversed(_COUNTS):
        each = f"The newest of each of the newest N {_plural(word)} that have one."
        text = "The newest N." if word == "last" else each
        function = click.option(f"--keep-{word}", metavar="N", type=click.IntRange(0), help=text)(function)
    return function


def _plural(word: str) -> str:
    return {"daily": "days"}.get(word, word.removesuffix("ly") + "s")


@click.command("forget", cls=Command, short_help="Forget restore points, by policy or by name.")
@click.argument("names", metavar="[POINT|DOMAIN]...", nargs=-1)
@click.option("--job", metavar="NAME", help="Apply the `keep` of this job to its domains.")
@_keep_options
@click.option("--keep-within", metavar="DURATION", help="All that are not older, like 7d.")
@click.option("--allow-last", is_flag=True, help="Also the last good restore point of a domain.")
@click.option("--dry-run", is_flag=True, help="Only tell what would become of each.")
@click.pass_obj
def command(
    state: State,
    /,
    names: tuple[str, ...],
    job: str | None,
    keep_within: str | None,
    allow_last: bool,
    dry_run: bool,
    **counts: int | None,
) -> int:
    """Forget restore points for good: those that no rule keeps, or those named.

    With --keep-... or --job the rules are applied to each DOMAIN (to all, unless told) for itself. Without them each
    POINT is forgotten, and all of a DOMAIN. `vmbackup prune` then frees the space.
    """
    from vmbackup.cli import access
    from vmbackup.cli.output import counted, say, say_json
    from vmbackup.engine.care.forget import by_name, by_policy, check_lost, forget, known_damaged

    config = access.load_config(state)
    asked = {word: counts[f"keep_{word}"] for word in _COUNTS}
    given = _job(config, job)
    rules = _rules(asked, keep_within, given)
    if rules is None and not names:
        raise UsageError("nothing says what to forget", "name restore points, or use --keep-daily 7 or --job NAME")
    repository_name = state.repository or (given.repository if given else None)
    with access.opened_repository(config, repository_name) as repository:
        repository.check_may_collect()
        found = repository.survey()
        lost: list[tuple[Any, bytes, str]] = []
        if rules is not None:
            points = _of_domains(found, names, given)
            spoiled = known_damaged(repository, points, _suspects(config, repository_name, repository))
            now = _store_time(repository)
            verdicts = by_policy(points, rules, now, damaged=spoiled, allow_last=allow_last, backdated=found.backdated)
        else:
            named, lost = _named(found, names)
            verdicts = by_name(found, named, allow_last=allow_last)
            going = {point.session for point in named} | {session for _, session, _ in lost}
            for lineage, session, text in lost:
                if text:
                    check_lost(repository, found, lineage, session, going)
        if not dry_run:
            forget(repository, verdicts, found)
            _forget_lost(repository, lost)
    gone = [found.name(v.point) for v in verdicts if not v.reasons] + [text for _, _, text in lost if text]
    if state.json:
        say_json(_document(found, verdicts, gone, dry_run=dry_run))
        return 0
    if dry_run:
        say(_table(found, verdicts))
    did = "would be forgotten" if dry_run else "forgotten"
    say(f"{counted(len(gone), 'restore point')} {did}, {sum(bool(v.reasons) for v in verdicts)} kept.")
    if gone and not dry_run:
        say("'vmbackup prune' frees the space that only they took.")
    return 0


def _job(config: "Config", name: str | None) -> "Job | None":
    if name is None:
        return None
    if name not in config.jobs:
        from vmbackup.config.mistakes import did_you_mean

        raise NotFoundError(f'there is no job "{name}" in the configuration', did_you_mean(name, config.jobs) or "")
    if config.jobs[name].keep is None:
        raise UsageError(f'job "{name}" has no keep', "add keep = { last = 3, daily = 7 } to it, or use --keep-daily")
    return config.jobs[name]


def _rules(counts: dict[str, int | None], within: str | None, job: "Job | None") -> "Rules | None":
    """The rules of the options, else those of the job; None where there are neither."""
    from vmbackup.config.units import InvalidValue, parse_duration
    from vmbackup.config.zones import local_zone
    from vmbackup.repository.retention import Rules

    try:
        span: timedelta | None = parse_duration(within) if within is not None else None
    except InvalidValue as error:
        raise UsageError(f"--keep-within: {error}", error.hint) from None
    zone = ZoneInfo(job.timezone) if job and job.timezone else local_zone()
    if span is not None or any(number is not None for number in counts.values()):
        made = Rules(**counts, within=span, timezone=zone)
        if made.none:
            raise UsageError("a rule of 0 keeps nothing, and so is no rule", "name a number of 1 or more")
        return made
    return Rules(**job.keep.model_dump(), timezone=zone) if job and job.keep else None


def _store_time(repository: "Repository") -> datetime:
    return datetime.now(UTC) + timedelta(seconds=repository.store.probe().clock_skew)


def _suspects(config: "Config", name: str | None, repository: "Repository") -> set[str]:
    """Ids of the restore points that suffer, as this host's last verification found."""
    from vmbackup.cli import access
    from vmbackup.engine.care.verified import recall

    known, _ = access.named_repository(config, name)
    kept = recall(config.daemon.state_dir, known, repository.config.repository.hex())
    return {point for one in kept.damaged for point in one.points} if kept else set()


def _of_domains(found: "PointList", names: tuple[str, ...], job: "Job | None") -> list["Point"]:
    """The points of the domains named, of the job's, or all."""
    if names:
        known = {text for point in found.points for text in (point.domain, point.uuid)}
        for name in names:
            if name not in known:
                hint = "with --keep-... and --job domains are named, not restore points; 'vmbackup list' shows them"
                raise NotFoundError(f"there is no restore point of a domain '{name}'", hint)
        return [point for point in found.points if point.domain in names or point.uuid in names]
    if job is None:
        return found.points
    return [point for point in found.points if job.means(point.domain)]


def _named(found: "PointList", names: tuple[str, ...]) -> tuple[list["Point"], list[tuple[Any, bytes, str]]]:
    """The points named one by one or as all of a domain, and places of such as cannot be read any more.

    With all of a domain goes what its failed runs left, without a name.
    """
    from vmbackup.errors import DamageError
    from vmbackup.repository.layout import short_id
    from vmbackup.repository.resolve import in_quarantine, place_of, resolve

    named: list[Point] = []
    lost: list[tuple[Any, bytes, str]] = []
    for name in names:
        whole = [point for point in found.points if name in (point.domain, point.uuid)]
        if len(uuids := list(dict.fromkeys(point.uuid for point in whole))) > 1:
            raise UsageError(f"{len(uuids)} guests are called '{name}'", f"write the UUID of one: {', '.join(uuids)}")
        if whole:
            named += whole
            histories = {point.lineage for point in whole}
            places = filter(None, map(place_of, found.damaged))
            lost += ((*place, short_id(place[1])) for place in places if place[0] in histories)
            more = (*found.partials, *found.quarantined)
            lost += ((p.lineage, p.session, "") for p in more if p.lineage in histories)
            continue
        unread = [place for place in map(place_of, found.damaged) if place and place[1].hex() == name.lower()]
        if unread:
            lost.append((*unread[0], name))
            continue
        if doubtful := in_quarantine(found, name):
            lost.append((doubtful.lineage, doubtful.session, short_id(doubtful.session)))
            continue
        try:
            named.append(resolve(found, name))
        except DamageError as error:
            place = place_of(error)
            if place is None or short_id(place[1]) != name.rpartition("-")[2].lower():
                raise
            lost.append((*place, name))
    return named, lost


def _forget_lost(repository: "Repository", lost: list[tuple[Any, bytes, str]]) -> None:
    from vmbackup.repository import tombstones

    for lineage, session, _ in lost:
        tombstones.forget(repository, lineage, session)


def _document(found: "PointList", verdicts: list["Verdict"], gone: list[str], *, dry_run: bool) -> dict[str, Any]:
    kept = [
        {
            "id": found.name(v.point),
            "domain": v.point.domain,
            "time": v.point.time.isoformat(),
            "reasons": list(v.reasons),
        }
        for v in verdicts
        if v.reasons
    ]
    return {"forgotten": gone, "kept": kept, "dry_run": dry_run}


def _table(found: "PointList", verdicts: list["Verdict"]) -> str:
    from vmbackup.cli.output import local_time, table

    rows = (
        (
            found.name(v.point),
            v.point.domain,
            local_time(v.point.time, seconds=False),
            ", ".join(v.reasons) or "nothing",
        )
        for v in verdicts
    )
    return table(("POINT", "DOMAIN", "TIME", "KEPT BY"), rows)
