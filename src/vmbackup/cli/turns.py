"""Several domains, one after the other: one that fails does not keep the next from its turn."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vmbackup.cli.failure import Failure, tell, traced
from vmbackup.cli.options import State
from vmbackup.cli.output import clean


class Turns:
    """Counts domains and what became of them, and knows the exit code that this comes to."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._asked: list[str] = []
        self._failures: dict[str, Failure] = {}

    @contextmanager
    def of(self, domain: str) -> Iterator[None]:
        """The turn of one domain: its failure is told and counted; an interrupt is passed on."""
        self._asked.append(domain)
        try:
            yield
        except Exception as error:
            failure = Failure.of(error)
            self._failures[domain] = failure
            traced(error, debug=self._state.debug)
            if not self._state.json:
                tell(failure, about=domain)

    def add_failures(self, document: dict[str, Any]) -> dict[str, Any]:
        """The document with `failed`, and with `error` where the only domain asked for failed."""
        document["failed"] = [
            {"domain": name, "error": failure.message, "hint": failure.hint, "kind": failure.kind}
            for name, failure in self._failures.items()
        ]
        if len(self._asked) == 1 and self._failures:
            document["error"] = self._failures[self._asked[0]].document()
        return document

    def total(self, done: str) -> str | None:
        """A closing line for several domains, None for one."""
        if len(self._asked) == 1:
            return None
        names = ", ".join(clean(name) for name in self._failures)
        failed = f"; failed: {names}" if names else ""
        return f"{len(self._asked) - len(self._failures)} of {len(self._asked)} domains {done}{failed}"

    def exit_code(self, *, warned: bool) -> int:
        """1 where all failed (the error's own for a single domain), 3 where some failed or warned, else 0."""
        if self._failures and len(self._asked) == 1:
            return next(iter(self._failures.values())).exit_code
        if self._failures:
            return 1 if len(self._failures) == len(self._asked) else 3
        return 3 if warned else 0
