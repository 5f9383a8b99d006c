"""What drills saw, as `show` and `info` tell it, out of a real repository."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from vmbackup.repository import PointSummary, Repository, drills
from vmbackup.repository.drills import Seen
from vmbackup.repository.keys import Secret
from vmbackup.repository.trust import Trust
from vmbackup.storage_backends import open_store

from .conftest import Run
from .test_info import make_point

__all__ = ["make_point"]


def record(repository: Path, secrets: Path, point: str, hour: int, *, success: bool) -> None:
    secret = Secret.passphrase((secrets / "passphrase").read_text().strip())
    opened = Repository.open(open_store(str(repository)), secret, Trust(None))
    (found,) = (each for each in opened.read_points().points if each.id == point)
    checks = (("service ssh", True), ("file /etc/hostname", success))
    problem = None if success else "file /etc/hostname: No such file\x1b[31m"
    time = datetime(2026, 11, 28, hour, tzinfo=UTC)
    drills.record(opened, found, Seen(time, success, 21.5 if success else None, 30.0, "hv1", checks, problem))


def test_drills_are_told(
    run: Run, repository: Path, tmp_path: Path, make_point: Callable[[str], PointSummary]
) -> None:
    """Of a restore point its last one, of a guest the last one and the last that succeeded, whatever it was of."""
    first, second = make_point("web1").id, make_point("web1").id
    record(repository, tmp_path / "secrets", first, 6, success=True)
    record(repository, tmp_path / "secrets", second, 7, success=False)
    out = run("show", first).out
    assert "drilled      booted in 22 s, 2 checks held, 2026-11-28 " in out
    assert " on hv1" in out
    assert "FAILED 2026-11-28" in run("show", second).out
    assert "\x1b" not in run("show", second).out
    drill = run("--json", "show", second).json["points"][0]["drill"]
    assert (drill["success"], drill["checks"][1]) == (False, {"name": "file /etc/hostname", "success": False})
    told = run("--json", "info").json["guests"][0]["drill"]
    assert told["last"] == drill
    assert (told["last_success"]["time"], told["last_success"]["boot_seconds"]) == ("2026-11-28T06:00:00+00:00", 21.5)
