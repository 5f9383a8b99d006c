"""Runs of all kinds: `python children.py --config F --json --progress-fd M KIND [TEXT]`, in place of vmbackup."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

_FOREVER = 3600


def main(arguments: list[str]) -> int:
    config, progress = Path(arguments[1]), int(arguments[4])
    return KINDS[arguments[5]](config, progress, arguments[6:])


def say(document: dict) -> None:
    print(json.dumps(document), flush=True)


def interruptible() -> None:
    """As cli/app.py does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def hang(progress: int) -> int:
    """Until it is interrupted; says when it is ready to be."""
    try:
        interruptible()
        os.write(progress, b'{"note": "ready"}\n')
        time.sleep(_FOREVER)
    except KeyboardInterrupt:
        say({"error": {"kind": "interrupted", "message": "interrupted", "hint": "", "exit_code": 130}})
    return 130


def ok(config: Path, progress: int, rest: list[str]) -> int:
    """Everything a good run does."""
    for done in (0, 50, 100):
        line = {"task": "web01", "done_bytes": done, "total_bytes": 100}
        os.write(progress, json.dumps(line).encode() + b"\n")
    say({"points": [{"id": "p", "status": "success", "warnings": []}], "failed": [], "config": config.read_text()})
    return 0


def environment(config: Path, progress: int, rest: list[str]) -> int:
    fds = sorted(int(name) for name in os.listdir("/proc/self/fd"))
    say(
        {
            "environment": dict(os.environ),
            "fds": {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in fds if os.path.exists(f"/proc/self/fd/{fd}")},
            "given": [int(sys.argv[2].rpartition("/")[2]), progress],
            "pid": os.getpid(),
            "session": os.getsid(0),
            "group": os.getpgid(0),
            "stdin": sys.stdin.read(),
        }
    )
    return 0


def change_config(config: Path, progress: int, rest: list[str]) -> int:
    try:
        with open(config, "r+b") as file:
            file.write(b"changed")
    except OSError as error:
        say({"refused": str(error)})
    return 0


def tell_and_fail(config: Path, progress: int, rest: list[str]) -> int:
    """Exit code and what to print on standard output, then on standard error."""
    code, output, error = rest
    sys.stdout.write(output)
    sys.stderr.write(error)
    sys.stdout.flush()
    return int(code)


def crash(config: Path, progress: int, rest: list[str]) -> int:
    print("about to crash", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGSEGV)
    return 0


def deaf(config: Path, progress: int, rest: list[str]) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.write(progress, b'{"note": "ready"}\n')
    time.sleep(_FOREVER)
    return 0


def stubborn(config: Path, progress: int, rest: list[str]) -> int:
    """Heeds no SIGTERM, and succeeds after so many seconds."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.write(progress, b'{"note": "ready"}\n')
    time.sleep(float(rest[0]))
    return 0


def helped(config: Path, progress: int, rest: list[str]) -> int:
    """Needs its helper to put things right after SIGTERM, and tells whether it still has it."""
    helper = subprocess.Popen(["/bin/sleep", str(_FOREVER)])
    hang(progress)
    time.sleep(0.2)
    os.write(progress, json.dumps({"task": str(helper.poll()), "done_bytes": 0}).encode() + b"\n")
    helper.kill()
    helper.wait()
    return 130


def silent(config: Path, progress: int, rest: list[str]) -> int:
    """Closes all it was given, and lives on."""
    os.write(progress, b'{"note": "ready"}\n')
    interruptible()
    for fd in (1, 2, progress):
        os.close(fd)
    try:
        time.sleep(float(rest[0]))
    except KeyboardInterrupt:
        os._exit(130)
    os._exit(0)


def flood(config: Path, progress: int, rest: list[str]) -> int:
    """So many MiB on standard error (lines, then one line without an end), standard output and the progress pipe."""
    size = int(rest[0]) << 20
    for piece in (b"x" * 70 + b"\n", b"y"):
        data = piece * (size // len(piece))
        view = memoryview(data)
        while view:
            view = view[os.write(2, view) :]
    for fd in (1, progress):
        view = memoryview(b"z" * size)
        while view:
            view = view[os.write(fd, view) :]
    print("\nthe last words", file=sys.stderr)
    return 1


def leave(config: Path, progress: int, rest: list[str]) -> int:
    """Leaves a child that holds all pipes: in its own session if told, else in this group. Tells its pid."""
    own = rest[0] == "session"
    child = subprocess.Popen(
        [sys.executable, "-ISc", f"import time; time.sleep({_FOREVER})"], pass_fds=(progress,), start_new_session=own
    )
    say({"left": child.pid})
    child.returncode = 0
    return 0


def leave_and_hang(config: Path, progress: int, rest: list[str]) -> int:
    child = subprocess.Popen([sys.executable, "-ISc", f"import time; time.sleep({_FOREVER})"], start_new_session=True)
    os.write(progress, json.dumps({"task": str(child.pid), "done_bytes": 0}).encode() + b"\n")
    return deaf(config, progress, rest)


def chatter(config: Path, progress: int, rest: list[str]) -> int:
    """The child goes on writing after its parent has ended."""
    program = "import os\nwhile True: os.write(2, b'noise' * 1000)"
    child = subprocess.Popen([sys.executable, "-ISc", program], start_new_session=True)
    say({"left": child.pid})
    child.returncode = 0
    return 0


def alone(config: Path, progress: int, rest: list[str]) -> int:
    """As the KIND that follows, but only where no other holds the FILE; else the exit code is 77."""
    with open(rest[0], "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 77
        return KINDS[rest[1]](config, progress, rest[2:])


KINDS = {
    "alone": alone,
    "ok": ok,
    "environment": environment,
    "change-config": change_config,
    "tell": tell_and_fail,
    "crash": crash,
    "hang": lambda config, progress, rest: hang(progress),
    "deaf": deaf,
    "silent": silent,
    "stubborn": stubborn,
    "helped": helped,
    "flood": flood,
    "leave": leave,
    "leave-and-hang": leave_and_hang,
    "chatter": chatter,
    "sleep": lambda config, progress, rest: time.sleep(float(rest[0])) or 0,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
