"""`vmbackup ARGUMENTS...`, that stays in its begin for ever once the guest is frozen, and says so on standard error."""

from __future__ import annotations

import sys
import time
from typing import Any

from vmbackup.cli import main
from vmbackup.hypervisor.live.beginning import Beginning


def stay(*_: Any) -> Any:
    print("frozen", file=sys.stderr, flush=True)
    while True:
        time.sleep(1)


if __name__ == "__main__":
    Beginning._begin = stay  # type: ignore[method-assign]
    sys.exit(main(sys.argv[1:]))
