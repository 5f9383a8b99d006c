"""Runs one command and notes what it and all its descendants took: `python -I -S _launch.py RESULT COMMAND...`.

A process of its own, and a small one, for two reasons. A child's peak memory starts at the size of the process
it was forked from, so a large parent would hide the small peers'. And as a subreaper it gets the daemons that a
command leaves behind: their CPU time counts, and none outlives the measurement.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from typing import NoReturn

PR_SET_CHILD_SUBREAPER = 36   # linux/prctl.h
GRACE = 10.0   # seconds for what the command left behind to end by itself


def main() -> int:
    """Runs the command; the exit code tells only whether it could be measured."""
    result, command = sys.argv[1], sys.argv[2:]
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        return 125
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _execute(command)
    user = system = wall = 0.0
    peak = code = 0
    for child, status, usage in _reaped(pid):
        user += usage.ru_utime
        system += usage.ru_stime
        peak = max(peak, usage.ru_maxrss)
        if child == pid:
            wall, code = time.monotonic() - start, os.waitstatus_to_exitcode(status)
    with open(result, "w") as file:
        json.dump({"wall": wall, "user": user, "system": system, "peak": peak * 1024, "code": code}, file)
    return 0


def _execute(command: list[str]) -> NoReturn:
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
    os._exit(127)


def _reaped(pid: int) -> Iterator[tuple[int, int, resource.struct_rusage]]:
    """Each child that ends, until none is left. What is left long after `pid` gets a SIGTERM."""
    options, deadline = 0, 0.0
    while True:
        try:
            child, status, usage = os.wait4(-1, options)
        except ChildProcessError:
            return
        if child:
            yield child, status, usage
            if child == pid:
                options, deadline = os.WNOHANG, time.monotonic() + GRACE
        elif time.monotonic() < deadline:
            time.sleep(0.01)
        else:
            with open(f"/proc/self/task/{os.getpid()}/children") as children:
                for left in children.read().split():
                    os.kill(int(left), signal.SIGTERM)
            deadline = time.monotonic() + GRACE


sys.exit(main())
