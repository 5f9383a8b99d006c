"""One condition that doctor looks at."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Check:
    """One condition. `fix` is the exact command or setting that mends it, "" where nothing is to mend."""

    name: str
    subject: str
    status: Literal["ok", "warn", "fail"]
    message: str
    fix: str = ""
