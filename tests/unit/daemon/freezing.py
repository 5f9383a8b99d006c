"""A run whose guest is frozen, as far as its watchdog knows, and that heeds no signal: stands in place of vmbackup."""

import json
import os
import signal
import sys
import time

from vmbackup.hypervisor.live.guard import Watchdog

TEST_DOMAIN = "6695eb01-f6a4-8304-79aa-97f2502e193f"  # of test:///default

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    watchdog = Watchdog("test:///default", TEST_DOMAIN)
    watchdog.arm()
    line = {"task": str(watchdog._process.pid), "done_bytes": 0, "total_bytes": None}
    os.write(int(sys.argv[5]), json.dumps(line).encode() + b"\n" + b'{"note": "ready"}\n')
    time.sleep(3600)
