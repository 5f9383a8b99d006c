"""Where the time of a full backup goes: py-spy's samples, by function."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from pathlib import Path

from tests.lab import machine

from .guest import Guest
from .measure import measure, run
from .tools import Vmbackup

RATE = 200   # samples a second
TOP = 25


def profile(guest: Guest, folder: Path, *, gil: bool) -> str:
    """Runs a full backup under py-spy; its top functions.

    With `gil` only threads that hold the interpreter's lock are sampled: what Python itself costs. Without it all
    threads that are on a CPU, in C code too. Raises BenchError.
    """
    samples = folder / "samples.txt"
    tool = Vmbackup(guest, folder / f"profile-{'gil' if gil else 'cpu'}")
    try:
        spy = [str(_py_spy()), "record", "--format", "raw", "--rate", str(RATE), "--output", str(samples),
               *(["--gil"] if gil else []), "--", sys.executable, "-m", "vmbackup.cli"]
        cost = measure([*spy, *tool.command()[1:], "backup", guest.name, "--json"], tool.folder, warm=[guest.image])
        what = "holding the interpreter's lock" if gil else "on a CPU, C code in its caller's line"
        return f"full backup, {cost.wall:.2f} s under py-spy; threads {what}:\n{_top(samples.read_text())}"
    finally:
        tool.tidy()
        guest.forget_checkpoints()


def _py_spy() -> Path:
    """py-spy's program: of this environment, else of the lab's cache, where it is installed once."""
    if importlib.util.find_spec("py_spy") is not None:
        return Path(sys.executable).with_name("py-spy")
    place = machine.CACHE_DIR / "bench" / "py-spy"
    program = place / "bin" / "py-spy"
    if not program.exists():
        run(sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--target", str(place),
            "py-spy")
    return program


def _top(text: str) -> str:
    own: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        own[frames[-1]] += int(count)
        for frame in set(frames):
            whole[frame] += int(count)
    total = sum(own.values()) or 1
    lines = [f"{total} samples at {RATE} a second ({total / RATE:.2f} thread seconds)", "  own s    %  total s  line"]
    lines += [f"{count / RATE:7.2f} {100 * count / total:4.0f} {whole[frame] / RATE:8.2f}  {frame}"
              for frame, count in own.most_common(TOP)]
    functions: Counter[str] = Counter()
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        for function in {frame.rpartition(":")[0] for frame in stack.split(";")}:
            functions[function] += int(count)
    lines.append("total s    %  function, with what it calls")
    lines += [f"{count / RATE:7.2f} {100 * count / total:4.0f}  {function}"
              for function, count in functions.most_common(TOP)]
    return "\n".join(lines)
