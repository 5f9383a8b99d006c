"""How fast restores from a repository were on this host, remembered to say how long the next one will take."""

import contextlib
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vmbackup.durable import replace_file

_NAME = "restore-speed.json"
_LEAST_BYTES = 64 << 20  # less says more of the start of a process than of a store
_NEWEST = 0.5  # its weight against all former ones


@dataclass(frozen=True)
class Speed:
    """Plain bytes of data a second, and when (ISO 8601) it was measured last."""

    bytes_per_second: float
    time: str

    def seconds(self, data_bytes: int) -> float:
        """For how long a restore of so many bytes will run."""
        return data_bytes / self.bytes_per_second


class SpeedMemory:
    """A file of the state folder. One that cannot be read or written costs an estimate, nothing else."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / _NAME

    def of(self, repository: bytes) -> Speed | None:
        """The speed of restores from a repository; None where none was measured."""
        known = self._read().get(repository.hex())
        try:
            speed = Speed(float(known["bytes_per_second"]), str(known["time"])) if known else None
        except (KeyError, TypeError, ValueError):
            return None
        return speed if speed and speed.bytes_per_second > 0 else None

    def remember(self, repository: bytes, data_bytes: int, seconds: float, now: datetime | None = None) -> None:
        """A restore that has ended well; a small one is not counted."""
        if data_bytes < _LEAST_BYTES or seconds <= 0:
            return
        old, new = self.of(repository), data_bytes / seconds
        rate = new if old is None else old.bytes_per_second * (1 - _NEWEST) + new * _NEWEST
        speed = Speed(round(rate, 1), (now or datetime.now(UTC)).isoformat(timespec="seconds"))
        self._write({**self._read(), repository.hex(): asdict(speed)})

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, known: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            replace_file(self._path, json.dumps(known, indent=1).encode(), durable=False)
