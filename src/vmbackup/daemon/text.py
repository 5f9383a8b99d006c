"""The service in one line: what systemctl status shows."""

from vmbackup.daemon.snapshot import RunState, Snapshot
from vmbackup.daemon.work import moment

_MB = 1e6


def status_line(snapshot: Snapshot) -> str:
    """Like "web01 43 % 118 MB/s, next 02:00"."""
    going = [run for run in snapshot.runs if run.state != "queued"]
    parts = [_run(run) for run in going[:2]]
    if len(going) > len(parts):
        parts.append(f"{len(going) - len(parts)} more")
    if broken := sum(guest.promise(snapshot.now) in ("broken", "never") for guest in snapshot.guests):
        parts.append(f"{broken} of {len(snapshot.guests)} guests break their promise")
    if soon := min((guest.next_run for guest in snapshot.guests if guest.next_run), default=0.0):
        parts.append(f"next {_clock(soon, snapshot.now)}")
    return ", ".join(parts) or "nothing is scheduled"


def _run(run: RunState) -> str:
    done = run.progress
    words = [run.domain or run.repository]
    words += [] if run.kind == "backup" else [run.kind]
    if done.total_bytes:
        words.append(f"{min(100, done.done_bytes * 100 // done.total_bytes)} %")
    if done.bytes_per_second:
        words.append(f"{done.bytes_per_second / _MB:.0f} MB/s")
    return " ".join(words)


def _clock(time: float, now: float) -> str:
    """The time of day; with the date where it is not within a day."""
    text = moment(time) or ""
    return text[11:16] if time - now < 86400 else f"{text[:10]} {text[11:16]}"
