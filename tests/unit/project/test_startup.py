"""Help comes at once: nothing heavy is imported for it."""

import subprocess
import sys

import pytest

HEAVY = {
    "libvirt", "boto3", "botocore", "apscheduler", "prometheus_client", "pydantic", "cryptography", "zstandard",
    "blake3", "rich", "sqlite3", "asyncio", "http.client", "concurrent.futures",
}  # fmt: skip
"""Measured at 5 ms and more each; all of them together take half a second."""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["backup", "--help"], ["restore", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    """The names are compared, not the time: a busy machine must not fail this."""
    program = "import sys; from vmbackup.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "vmbackup.cli" in imported
    assert HEAVY & imported == set()
