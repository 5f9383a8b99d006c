"""`vmbackup --help` is fast: nothing is imported that the command at hand does not need."""

import os
import signal
import subprocess
import sys

import pytest

from vmbackup.cli.app import COMMANDS, _termination_interrupts

HEAVY = {"pydantic", "rich", "libvirt", "cryptography", "boto3", "zstandard", "blake3", "apscheduler"}
_SHOW_MODULES = """
import sys
from vmbackup.cli import main
code = main({args!r})
print(*sys.modules, file=sys.stderr)
sys.exit(code)
"""


def _modules(*args: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", _SHOW_MODULES.format(args=list(args))], capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in done.stderr.split()}


@pytest.mark.parametrize("args", [("--help",), ("--version",), ("backup", "--help"), ("key", "add", "--help")])
def test_help_imports_nothing_heavy(args: tuple[str, ...]) -> None:
    assert not HEAVY & _modules(*args)


def test_help_names_every_command() -> None:
    done = subprocess.run([sys.executable, "-m", "vmbackup.cli", "--help"], capture_output=True, text=True, check=True)
    words = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")}
    assert set(COMMANDS) <= words


def test_a_second_sigterm_does_not_break_off_the_way_out() -> None:
    """systemd and the service may both send one; guests are thawed and jobs ended all the same."""
    steps = []
    with pytest.raises(KeyboardInterrupt), _termination_interrupts():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            steps.append("thawed")
    assert steps == ["thawed"]
