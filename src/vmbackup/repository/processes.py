"""Telling whether a process of this machine is still the one that it was."""

from pathlib import Path


def process_mark(pid: int | str = "self") -> str:
    """`<boot>:<pid>:<start>` of a running process; empty where there is none of that pid. Linux's procfs."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    number, _, rest = stat.partition(" ")
    return f"{boot}:{number}:{rest.rpartition(')')[2].split()[19]}"


def is_alive(mark: str) -> bool:
    """Whether the process that `process_mark` told of runs on this machine now."""
    parts = mark.split(":")
    return len(parts) == 3 and parts[1].isdecimal() and process_mark(parts[1]) == mark
