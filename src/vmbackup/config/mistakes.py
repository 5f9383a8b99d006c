"""How mistakes of a configuration file are told: all of them, each with its place, value and remedy."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vmbackup.errors import ConfigError

_SECRET = ("passphrase", "password", "secret", "token", "access_key", "ping")  # a ping's path is as good as a key
_LONGEST_VALUE = 60  # characters of a value that a message repeats


@dataclass(frozen=True)
class Mistake:
    """One mistake: `path` of the key, what is wrong in half a sentence, and what to do ("" if plain)."""

    path: tuple[str, ...]
    message: str
    hint: str = ""
    line: int | None = None


class ConfigMistakesError(ConfigError):
    """A configuration file with mistakes; nothing of it is used. `mistakes` holds all of them."""

    def __init__(self, file: str, mistakes: Sequence[Mistake]) -> None:
        self.file = file
        self.mistakes = tuple(mistakes)
        if len(mistakes) == 1:
            super().__init__(self.lines()[0], mistakes[0].hint or f"correct {file}")
            return
        listed = "".join(f"\n  {line}" for line in self.lines(hints=True))
        super().__init__(f"{file} has {len(mistakes)} mistakes:{listed}", f"correct {file}")

    def lines(self, *, hints: bool = False) -> list[str]:
        """Each mistake as "FILE:LINE: what is wrong", with its remedy after a colon if `hints`."""
        return [self._line(mistake, hints=hints) for mistake in self.mistakes]

    def _line(self, mistake: Mistake, *, hints: bool) -> str:
        place = f"{self.file}:{mistake.line}" if mistake.line else self.file
        return f"{place}: {mistake.message}" + (f": {mistake.hint}" if hints and mistake.hint else "")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A question with the nearest known word, "" if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f'did you mean "{near[0]}"?' if near else ""


def shown(path: Sequence[str], value: object) -> str:
    """`value` as a message may show it: short, and never what looks like a secret."""
    name = path[-1].lower() if path else ""
    if any(word in name for word in _SECRET) and not name.endswith(("_file", "_credential")):
        return "(hidden)"
    text = repr(value)
    if isinstance(value, str) and "://" in value and "@" in value:
        return "(hidden)"  # an address with a password in it
    if isinstance(value, str):
        text = f'"{value}"'
    elif isinstance(value, bool):
        text = text.lower()
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def table_name(path: Sequence[str]) -> str:
    """The table as the file names it: "[jobs.nightly]", or "the file" for the top."""
    return f"[{'.'.join(path)}]" if path else "the file"
