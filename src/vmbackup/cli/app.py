"""The program as a whole: the group of commands, and what becomes of errors, interrupts and exit codes."""

import contextlib
import gc
import io
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib import import_module
from types import FrameType

import click

from vmbackup import __version__
from vmbackup.cli.failure import Failure, interrupted, report, traced
from vmbackup.cli.options import Command, State, global_options
from vmbackup.errors import UsageError

COMMANDS = (
    *("init", "doctor", "backup", "list", "show", "info", "restore", "serve", "boot", "files", "drill", "verify"),
    *("repair", "copy", "forget", "prune", "purge", "recover", "cbt", "key", "residency"),
    *("daemon", "status", "run", "cancel"),
)

# Objects made between two searches for cycles. The interpreter's 700 cost 0.06 s a 1,000 restore points, and find none.
_GARBAGE = 20_000


class Program(click.Group):
    """The group `vmbackup`: a command's module is imported when the command is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """In the order of use, not of the alphabet."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command of that name, None if there is none."""
        if cmd_name not in COMMANDS:
            return None
        command = import_module(f"vmbackup.cli.{cmd_name}").command
        assert isinstance(command, Command | click.Group)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with the nearest command as a hint."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            from vmbackup.config.mistakes import did_you_mean

            hint = did_you_mean(args[0], COMMANDS) or "'vmbackup --help' lists the commands"
            raise UsageError(f'there is no command "{args[0]}"', hint)
        return super().resolve_command(ctx, args)


@click.group(
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    params=global_options(hidden=False),
    epilog="""\b
The options above may also stand after COMMAND.
Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 done with
warnings or some failed, 4 something is damaged, 5 not found, 6 wrong key,
130 interrupted.""",
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def program() -> None:
    """Incremental backup and restore of libvirt/QEMU virtual machines."""


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code. Whatever goes wrong is told, nothing is raised."""
    args = list(sys.argv[1:] if argv is None else argv)
    state = State(json="--json" in args, debug="--debug" in args)
    _print_any_name()
    gc.set_threshold(_GARBAGE)
    try:
        with _termination_interrupts():
            result = program.main(args, prog_name="vmbackup", standalone_mode=False, obj=state)
        sys.stdout.flush()
    except (click.Abort, KeyboardInterrupt) as error:
        return report(interrupted(error), as_json=state.json)
    except SystemExit as error:  # click's answer to a closed pipe
        return error.code if isinstance(error.code, int) else 1
    except BrokenPipeError:
        return _closed_pipe()
    except Exception as error:
        traced(error, debug=state.debug)
        return report(Failure.of(error), as_json=state.json)
    return result if isinstance(result, int) else 0


def _print_any_name() -> None:
    """A name that the terminal's encoding lacks is shown with escapes, not an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _closed_pipe() -> int:
    """`vmbackup list | head` is no failure to tell of; the interpreter's last flush must not complain."""
    import os

    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


@contextlib.contextmanager
def _termination_interrupts() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does: guests are thawed and jobs ended on the way out.

    Only the first one: systemd and the service may both send one, and the second must not break off that way out.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, lambda *_: None)  # not SIG_IGN, which programs started later would inherit
    raise KeyboardInterrupt
