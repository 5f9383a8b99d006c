"""Jobs whose guests are backed up at one instant: one request, one run, one process; but each guest's own history.

A run of a group takes one turn of the host's limit, for its guests are read one after the other. It waits until none of
them is being backed up by another job. Everybody who is told of it is told of each guest: the parts of a run have ids
`<run>-1`, `<run>-2`, ...
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from vmbackup.config.models import Config
from vmbackup.daemon.work import Kind, Outcome, Progress, Request, Run, Status, Work


def grouped(config: Config, requests: Iterable[Request], domains: Iterable[str] | None = None) -> list[Request]:
    """The requests, with those of one group as one: of the guests that are asked for.

    With `domains`, all that libvirt knows, of all that the job means: what is due for one is due for its whole group.
    """
    alone: list[Request] = []
    groups: dict[str, list[Request]] = {}
    for request in requests:
        job = config.jobs.get(request.work.job or "")
        if request.work.kind is Kind.BACKUP and job and job.consistency_group:
            groups.setdefault(request.work.job or "", []).append(request)
        else:
            alone.append(request)
    known = None if domains is None else list(domains)
    for name, asked in groups.items():
        names = {request.work.domain or "" for request in asked}
        names |= set(filter(config.jobs[name].means, known or ()))
        alone.append(_joined(asked, sorted(names)))
    return alone


def _joined(asked: list[Request], names: list[str]) -> Request:
    """One request for all: due as the first of them is."""
    first = min(asked, key=lambda request: request.not_before)
    if len(names) == 1:
        return first
    promises = [request.promise for request in asked if request.promise is not None]
    work = replace(first.work, domain=None, members=tuple(names))
    return replace(first, work=work, due=min(r.due for r in asked), promise=min(promises, default=None))


def parts_of_request(request: Request) -> list[Request]:
    """A request for each guest of a group; one of another kind is its own only part."""
    return [
        replace(request, work=_part(request.work, name), id=f"{request.id}-{number}")
        for number, name in enumerate(request.work.members, 1)
    ] or [request]


def parts_of_run(run: Run) -> list[Run]:
    """As `parts_of_request`, each with what became of its guest."""
    if not run.request.work.members:
        return [run]
    return [_part_of_run(run, request) for request in parts_of_request(run.request)]


def whole(part_id: str) -> str:
    """The id of the run that a part's id belongs to."""
    return part_id.partition("-")[0]


def _part_of_run(run: Run, request: Request) -> Run:
    name = request.work.domain or ""
    return replace(
        run,
        id=request.id,
        request=request,
        progress=run.progress if run.progress.task == name else Progress(),
        outcome=_outcome_of(run.outcome, name) if run.outcome else None,
    )


def _part(work: Work, name: str) -> Work:
    return replace(work, domain=name, members=())


def _outcome_of(outcome: Outcome, name: str) -> Outcome:
    """What the run's document says of one guest; the run's own outcome where that is nothing."""
    for point in _listed(outcome.document, "points"):
        if point.get("domain") == name:
            warnings = [text for text in point.get("warnings") or () if isinstance(text, str)]
            status = Status.WARNING if point.get("status") == "warning" else Status.SUCCESS
            return Outcome(status, 3 if warnings else 0, "; ".join(warnings) or None, document={"points": [point]})
    for failed in _listed(outcome.document, "failed"):
        if failed.get("domain") == name:
            error, hint, kind = (_text(failed.get(key)) for key in ("error", "hint", "kind"))
            return Outcome(Status.FAILED, 1, error, hint, kind)
    return replace(outcome, document={})


def verdict(outcome: Outcome) -> Outcome:
    """The outcome of a group: failed, and so tried again, where one of its guests failed though the others did not."""
    failed = _listed(outcome.document, "failed")
    if outcome.status is not Status.WARNING or not failed:
        return outcome
    names = ", ".join(str(each.get("domain")) for each in failed)
    first = failed[0]
    told = f"the group is not whole: {names} failed: {_text(first.get('error'))}"
    return replace(outcome, status=Status.FAILED, error=told, hint=_text(first.get("hint")), kind="group")


def _listed(document: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    value = document.get(name)
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def _text(value: object) -> str | None:
    from vmbackup.daemon.lines import plain

    return plain(value)[:1000] if isinstance(value, str) and value else None
