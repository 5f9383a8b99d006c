"""The command line: parses, calls the engine, prints. One module a command, imported when it is asked for."""

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command of `vmbackup` and return its exit code; `argv` without the program's name."""
    from vmbackup.cli.app import run

    return run(argv)
