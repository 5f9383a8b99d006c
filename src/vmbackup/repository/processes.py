"""Telling whether a process of this machine is still the one that it was."""

from pathlib import Path

_ENDED = ("Z", "X")  # states of a process: a zombie, and one that is dead


def process_mark(pid: int | str = "self") -> str:
    """`<boot>:<pid>:<start>` of a running process; empty where there is none of that pid (proc(5), pid/stat).

    One that has ended runs no more, though nobody took in its end yet: in a container perhaps nobody ever does.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    number, _, rest = stat.partition(" ")
    state, *fields = rest.rpartition(")")[2].split()
    return "" if state in _ENDED else f"{boot}:{number}:{fields[18]}"


def is_alive(mark: str) -> bool:
    """Whether the process that `process_mark` told of runs on this machine now."""
    parts = mark.split(":")
    return len(parts) == 3 and parts[1].isdecimal() and process_mark(parts[1]) == mark
