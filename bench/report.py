"""Tables of what was measured, and the ratios with their targets."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .measure import Cost
from .rounds import TASKS, Results

MB = 1_000_000
PEAK_TARGET = 300 * MB
EMPTY_TARGET = 1.0   # seconds, without the seal's wait


@dataclass(frozen=True)
class Ratio:
    """vmbackup's wall time over a peer's, for one task. `target` is None where nothing was promised."""

    task: str
    peer: str
    target: float | None


RATIOS = (
    Ratio("full", "virtnbdbackup", 0.45),
    Ratio("full", "nbdcopy", 2.2),
    Ratio("full", "nbdcopy --flush", None),
    Ratio("full", "qemu-img convert -c (zstd)", None),
    Ratio("full", "restic", None),
    Ratio("full", "borg", None),
    Ratio("empty", "virtnbdbackup", None),
    Ratio("scattered", "virtnbdbackup", 0.5),
    Ratio("scattered", "restic", None),
    Ratio("scattered", "borg", None),
    Ratio("restore", "virtnbdbackup", 0.5),
    Ratio("restore", "borg", 0.3),
    Ratio("restore", "nbdcopy", 1.3),
    Ratio("restore", "nbdcopy --flush", None),
)


def table(results: Results) -> str:
    """Each task and tool: medians over the rounds."""
    rows: list[tuple[str, ...]] = [("TASK", "TOOL", "WALL s", "SEAL s", "CPU s", "QEMU CPU s", "PEAK MB",
                                    "STORED MB", "SYNC AFTER s", "ON DISK AT THE END")]
    for task, title in TASKS.items():
        for (other, tool), costs in results.costs.items():
            if other != task:
                continue
            sealed = [cost.seal for cost in costs if cost.seal is not None]
            rows.append((
                title, tool, _median(costs, lambda c: c.wall), f"{statistics.median(sealed):.2f}" if sealed else "",
                _median(costs, lambda c: c.cpu),
                "" if task == "restore" else _median(costs, lambda c: c.qemu_cpu),
                _median(costs, lambda c: c.peak / MB, 0), _median(costs, lambda c: c.stored / MB, 1),
                _median(costs, lambda c: c.sync), results.synced[task, tool]))
            title = ""   # noqa: PLW2901 (once a task)
    return _aligned(rows, right=range(2, 9))


def ratios(results: Results) -> str:
    """Wall time over each peer's: the median of the ratios of each round."""
    rows: list[tuple[str, ...]] = [("TASK", "VMBACKUP OVER", "RATIO", "ROUNDS", "TARGET", "")]
    for ratio in RATIOS:
        ours, theirs = results.costs.get((ratio.task, "vmbackup")), results.costs.get((ratio.task, ratio.peer))
        if not ours or not theirs:
            continue
        each = [a.wall / b.wall for a, b in zip(ours, theirs, strict=True)]
        rows.append(_ratio_row(TASKS[ratio.task], ratio.peer, each, ratio.target))
        if ratio.task in ("empty", "scattered") and all(cost.seal is not None for cost in ours):
            each = [(a.wall - (a.seal or 0.0)) / b.wall for a, b in zip(ours, theirs, strict=True)]
            rows.append(_ratio_row("  without the seal's wait", ratio.peer, each, None))
    return _aligned(rows, right=range(2, 3))


def limits(results: Results) -> str:
    """The targets that are no ratios."""
    lines = []
    for task in ("empty", "sparse", "sparse-scattered"):
        costs = results.costs.get((task, "vmbackup"), [])
        if not costs:
            continue
        whole = statistics.median(cost.wall for cost in costs)
        if any(cost.seal is None for cost in costs):
            lines.append(f"{TASKS[task]}: {whole:.2f} s; vmbackup did not tell the seal's wait: nothing subtracted")
            continue
        rest = statistics.median(cost.wall - (cost.seal or 0.0) for cost in costs)
        target = f"; target {EMPTY_TARGET:.0f} s: {_reached(rest, EMPTY_TARGET)}" if task == "sparse" else ""
        lines.append(f"{TASKS[task]}: {rest:.2f} s and {whole - rest:.2f} s of the seal's wait{target}")
    peaks = [cost.peak for (_, tool), costs in results.costs.items() if tool == "vmbackup" for cost in costs]
    if peaks:
        lines.append(f"vmbackup's peak memory: {max(peaks) / MB:.0f} MB; target {PEAK_TARGET // MB} MB: "
                     f"{_reached(max(peaks), PEAK_TARGET)}")
    return "\n".join([*lines, *results.notes])


def _ratio_row(title: str, peer: str, each: Sequence[float], target: float | None) -> tuple[str, ...]:
    value = statistics.median(each)
    rounds = " ".join(f"{ratio:.2f}" for ratio in each)
    if target is None:
        return title, peer, f"{value:.2f}", rounds, "", ""
    return title, peer, f"{value:.2f}", rounds, f"{target}", _reached(value, target)


def _reached(value: float, target: float) -> str:
    return "reached" if value <= target else f"MISSED by {100 * (value / target - 1):.0f} %"


def _median(costs: Sequence[Cost], figure: Callable[[Cost], float], digits: int = 2) -> str:
    return f"{statistics.median(map(figure, costs)):.{digits}f}"


def _aligned(rows: Sequence[Sequence[str]], right: range) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) if i in right else cell.ljust(width)
                 for i, (cell, width) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
