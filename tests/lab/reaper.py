"""Runs a command that leaves daemons behind, and takes in their ends at once, for as long as any of them lives.

Without systemd a daemon's end is taken in by process 1, which in a container may come by every two seconds
only. Until then it is a zombie, and libvirt waits for it: for each QEMU that it ends.

    python reaper.py libvirtd -d        # ends with libvirtd's own exit code, once that is at work
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


def main(command: list[str]) -> int:
    """The exit code of the command; who reaps goes on in a process of its own."""
    read, write = os.pipe()
    if os.fork():
        os.close(write)
        said = os.read(read, 1)
        return said[0] if said else 1
    os.close(read)
    os.setsid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        code = subprocess.run(command, check=False).returncode
    except OSError as error:
        print(error, file=sys.stderr)
        code = 127
    os.write(write, bytes([code & 0xFF]))
    os.close(write)
    _let_go()
    _reap()
    return 0


def _let_go() -> None:
    """Of whoever waits for the end of what we print, and of the folder."""
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)


def _reap() -> None:
    try:
        while True:
            os.wait()
    except ChildProcessError:  # the last of them has ended
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
