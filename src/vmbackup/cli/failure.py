"""What becomes of an error: one sentence of what is wrong, one of what to do, a kind and an exit code."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import click

from vmbackup.cli.output import clean, paint, say_json
from vmbackup.errors import VmbackupError

_BUG = "this is a bug in vmbackup: run the command again with --debug, and report what it prints"
_STORE_CODES = {  # kind of a StoreError -> exit code; the others are 1
    "store_url": 2,
    "store_missing": 5,
    "object_missing": 4,
    "object_exists": 4,
    "object_truncated": 4,
}


@dataclass(frozen=True)
class Failure:
    """An error as it is told. `details` are further fields of its JSON document."""

    kind: str
    message: str
    hint: str
    exit_code: int
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """Any error, as it is told. What nobody expected is said to be a bug."""
        if isinstance(error, VmbackupError):
            return cls(error.kind, error.message, error.hint, error.exit_code, _details(error))
        if isinstance(error, click.ClickException):
            ctx = error.ctx if isinstance(error, click.UsageError) else None
            command = ctx.command_path if ctx else "vmbackup"
            hint = f"'{command} --help' tells what is possible"
            return cls("usage", _sentence(error.format_message()), hint, 2)
        return _foreign(error) or cls("internal", f"{type(error).__name__}: {error}", _BUG, 1)

    def document(self) -> dict[str, Any]:
        """The JSON object of the error."""
        fields = {"kind": self.kind, "message": self.message, "hint": self.hint, "exit_code": self.exit_code}
        return fields | dict(self.details)


def interrupted(error: BaseException) -> Failure:
    """Ctrl-C or SIGTERM; notes on the error tell what was left all the same."""
    left = "; ".join(getattr(error, "__notes__", ()))
    return Failure("interrupted", "interrupted", left or "nothing was left half done; run it again when it suits", 130)


def report(failure: Failure, *, as_json: bool) -> int:
    """Tell of the failure, on standard output as JSON or else on standard error; return its exit code."""
    if as_json:
        say_json({"error": failure.document()})
    else:
        tell(failure)
    return failure.exit_code


def tell(failure: Failure, about: str = "") -> None:
    """The failure for people, on standard error; `about` is the domain whose turn it was."""
    label = paint("error:", "red", sys.stderr)
    subject = f"{about}: " if about and about not in failure.message else ""
    click.echo(f"{label} {clean(subject + failure.message)}", err=True)
    if failure.hint:
        click.echo(f"       {clean(failure.hint)}", err=True)


def traced(error: BaseException, *, debug: bool) -> None:
    """The traceback of an error, with --debug only."""
    if debug:
        import traceback

        traceback.print_exception(error)


def _details(error: VmbackupError) -> dict[str, Any]:
    """What typed errors know beyond their sentence."""
    from vmbackup.config.mistakes import ConfigMistakesError

    if isinstance(error, ConfigMistakesError):
        return {
            "mistakes": [
                {
                    "file": error.file,
                    "line": mistake.line,
                    "key": ".".join(mistake.path),
                    "message": mistake.message,
                    "hint": mistake.hint,
                }
                for mistake in error.mistakes
            ]
        }
    return {}


def _foreign(error: BaseException) -> Failure | None:
    """Errors of packages that know nothing of ours, and of the operating system."""
    kind = getattr(error, "kind", "failed")
    if _is_one_of(error, "vmbackup.storage_backends.base", "StoreError"):
        code = _STORE_CODES.get(kind, 1)
        told = "damaged" if code == 4 else kind
        return Failure(told, str(error), _store_hint(kind, code, getattr(error, "hint", "")), code)
    if _is_one_of(error, "vmbackup.nbd.errors", "NbdError"):
        hint = getattr(error, "hint", "") or "run it again; 'vmbackup doctor' checks the rest"
        return Failure("nbd", str(error), hint, 1)
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return Failure("system", f"{place}{error.strerror}", "'vmbackup doctor' checks folders and space", 1)
    if isinstance(error, MemoryError):
        return Failure("system", "out of memory", "free some memory and run it again", 1)
    return None


def _is_one_of(error: BaseException, module: str, name: str) -> bool:
    """Whether `error` is of a class of that module; a module that was never imported raised nothing."""
    base = getattr(sys.modules.get(module), name, None)
    return isinstance(base, type) and isinstance(error, base)


def _store_hint(kind: str, code: int, hint: str) -> str:
    if kind == "store_missing" and "vmbackup init" not in hint:
        return f"{hint or 'correct its url'}; 'vmbackup init' makes a new repository"
    if code == 4:
        return hint or "run 'vmbackup verify --read-data' to see which restore points suffer"
    return hint or "'vmbackup doctor' checks the repository"


def _sentence(text: str) -> str:
    """One of click's sentences in our form: no capital, no full stop."""
    text = text.strip().rstrip(".")
    return text[:1].lower() + text[1:]
