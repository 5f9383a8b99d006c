"""A round: every tool in turn does every task, on the same guest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab.domain import ImagesDifferError

from .guest import Guest
from .measure import BenchError, Cost
from .tools import Tool, Vmbackup

TASKS = {"full": "full", "empty": "empty incremental", "scattered": "500 scattered writes", "restore": "restore",
         "sparse-full": "1 TiB sparse: first full", "sparse": "1 TiB sparse: empty incremental",
         "sparse-scattered": "1 TiB sparse: 500 scattered writes"}
"""Task and title, in the order in which they run."""

_METHODS = {"full": "full", "empty": "increment", "scattered": "increment", "restore": "restore"}


@dataclass
class Results:
    """What was measured: for a task and a tool's name the costs, one a round."""

    costs: dict[tuple[str, str], list[Cost]] = field(default_factory=dict)
    synced: dict[tuple[str, str], str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, task: str, tool: Tool, cost: Cost, method: str) -> None:
        """One more round's."""
        self.costs.setdefault((task, tool.name), []).append(cost)
        self.synced[task, tool.name] = tool.synced(method)


@dataclass
class Bench:
    """The guests, what shall be measured, and where the results go. `sparse` is None where it is not asked for."""

    guest: Guest
    sparse: Guest | None
    tools: Sequence[type[Tool]]
    tasks: Sequence[str]
    folder: Path
    results: Results
    say: Callable[[str], None]
    keep: bool = False
    """Whether what the last round has stored stays."""
    _scatters: int = 0

    def round(self, number: int, *, last: bool) -> None:
        """One round; another tool is first in each.

        A tool does all its tasks before the next one's turn, and its checkpoints are deleted then: virtnbdbackup
        refuses a domain that has another program's.
        """
        turn = number % len(self.tools)
        for kind in (*self.tools[turn:], *self.tools[:turn]):
            tool = kind(self.guest, self.folder / f"{number}-{kind.__name__.lower()}")
            try:
                self._all(tool)
            finally:
                if not (self.keep and last):
                    tool.tidy()
                self.guest.forget_checkpoints()
        if self.sparse is not None:
            self._sparse(self.sparse, number)

    def _all(self, tool: Tool) -> None:
        tasks = [task for task in self.tasks if task in _METHODS and _METHODS[task] in tool.does]
        if tasks and "full" not in tasks:
            tasks.insert(0, "full")
        for task in tasks:
            if task == "scattered":
                self._scatter(self.guest)
            self._measure(task, tool, _METHODS[task])
            if task == "restore":
                self._check(tool)

    def _scatter(self, guest: Guest) -> None:
        self._scatters += 1
        guest.scatter(self._scatters)

    def _sparse(self, guest: Guest, number: int) -> None:
        tool = Vmbackup(guest, self.folder / f"{number}-sparse")
        try:
            self._measure("sparse-full", tool, "full")
            self._measure("sparse", tool, "increment")
            self._scatter(guest)
            self._measure("sparse-scattered", tool, "increment")
        finally:
            tool.tidy()
            guest.forget_checkpoints()

    def _measure(self, task: str, tool: Tool, method: str) -> None:
        cost: Cost = getattr(tool, method)()
        self.results.add(task, tool, cost, method)
        seal = f", of it seal {cost.seal:.2f} s" if cost.seal else ""
        self.say(f"  {TASKS[task]}, {tool.name}: {cost.wall:.2f} s{seal}")

    def _check(self, tool: Tool) -> None:
        if tool.restored is None:
            return
        try:
            self.guest.check(tool.restored)
        except ImagesDifferError as error:
            if isinstance(tool, Vmbackup):
                raise BenchError(f"vmbackup restored something else than the source: {error}") from error
            self.results.notes.append(f"{tool.name} restored something else than the source: {error}")
        else:
            self.say(f"    {tool.name}'s image is what the disk is")
