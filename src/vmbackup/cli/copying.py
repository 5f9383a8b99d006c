"""Copies of restore points: made, told of, and counted."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmbackup.cli.failure import Failure, tell, traced
from vmbackup.cli.options import State
from vmbackup.cli.output import clean, counted, say, say_json
from vmbackup.cli.points import document
from vmbackup.progress import Progress

if TYPE_CHECKING:
    from vmbackup.config.models import Config
    from vmbackup.engine.replica.copy import Copier, History
    from vmbackup.repository.repository import Repository
    from vmbackup.repository.summary import PointSummary

_DAMAGED = 4


@dataclass(frozen=True)
class _Failed:
    domain: str | None
    point: str | None
    failure: Failure


@dataclass
class Copies:
    """What came of copying to the repository `target`; told as it goes."""

    state: State
    target: str
    copied: "list[PointSummary]" = field(default_factory=list)
    skipped: int = 0
    domains: int = 0
    failed: list[_Failed] = field(default_factory=list)

    def run(self, config: "Config", source: "Repository", domains: Sequence[str], progress: Progress) -> None:
        """Copies what the target lacks of these domains, or of all. Raises what concerns all of them."""
        from vmbackup.cli import access
        from vmbackup.engine.replica.copy import Copier, CopyOptions

        options = CopyOptions(
            config.daemon.state_dir / "copies", secret=lambda: access.secret_of(config, self.target)
        )
        with access.opened_repository(config, self.target) as there:
            copier = Copier(source, there, options, progress)
            for history in copier.histories(domains):
                self._history(copier, history)

    def follow(self, config: "Config", source: "Repository", domains: Sequence[str], progress: Progress) -> None:
        """After a backup of these domains: the same for those that have restore points, all that goes wrong told."""
        try:
            known = {text for point in source.read_points().points for text in (point.domain, point.uuid)}
            if wanted := [domain for domain in domains if domain in known]:
                self.run(config, source, wanted, progress)
        except Exception as error:
            self._fail(None, None, error)
        else:
            if not self.state.json:
                say(self._total())

    def _history(self, copier: "Copier", history: "History") -> None:
        self.domains += 1
        try:
            done = copier.copy(history, self._told)
        except Exception as error:
            self._fail(history.domain, None, error)
            return
        self.skipped += done.skipped
        for point, why in done.failed:
            self._fail(history.domain, point, why)

    def _told(self, point: "PointSummary") -> None:
        from vmbackup.cli.points import stored
        from vmbackup.config.units import format_size

        self.copied.append(point)
        if not self.state.json:
            say(clean(f"{point.domain}: {point.id} copied to {self.target}, {format_size(stored(point))} stored"))

    def _fail(self, domain: str | None, point: str | None, error: Exception) -> None:
        failure = Failure.of(error)
        self.failed.append(_Failed(domain, point, failure))
        traced(error, debug=self.state.debug)
        if not self.state.json:
            tell(failure, about=": ".join(filter(None, (domain, point))) or f"copying to {self.target}")

    def document(self) -> dict[str, Any]:
        """The JSON of `copy`."""
        failed = [
            {"domain": f.domain, "point": f.point, "error": f.failure.message, "hint": f.failure.hint,
             "kind": f.failure.kind}
            for f in self.failed
        ]  # fmt: skip
        copied = document(self.copied)["points"]
        return {"repository": self.target, "copied": copied, "skipped": self.skipped, "failed": failed}

    def finish(self) -> int:
        """Prints the result; gives the exit code."""
        if self.state.json:
            say_json(self.document())
        else:
            say(self._total())
        return self.exit_code

    def _total(self) -> str:
        failed = f"; {len(self.failed)} failed" if self.failed else ""
        done = f"{counted(len(self.copied), 'restore point')} copied to {self.target}"
        return f"{done}, {self.skipped} needed no copy{failed}"

    @property
    def exit_code(self) -> int:
        """4 where something is damaged, else 3 where some were copied or there already; a sole failure's own."""
        codes = {f.failure.exit_code for f in self.failed}
        if not codes or _DAMAGED in codes:
            return _DAMAGED if codes else 0
        if self.copied or self.skipped:
            return 3
        return codes.pop() if len(codes) == 1 else 1
