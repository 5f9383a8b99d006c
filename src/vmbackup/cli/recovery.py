"""The file of a recovery key: known to be writable before a key depends on it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vmbackup.config.secrets import write_secret_file

_TEXT = """\
# The recovery key of the vmbackup repository "{name}", {id}, at {url}.
# It opens the repository where the passphrase is lost. Keep it off this machine, and keep it secret.
# To use it, name this file as passphrase_file.
{key}
"""

Write = Callable[[str, str, str, str], None]  # name, id and address of the repository, the key


@contextmanager
def recovery_file(path: Path) -> Iterator[Write]:
    """Make `path` (0600, never over another file) and give the function that fills it.

    Gone on a failure, unless it is filled by then: a key that opens nothing does no harm, a lost one does. Raises
    ConfigError where it cannot be written.
    """
    write_secret_file(path, "")
    filled = False

    def write(name: str, repository_id: str, url: str, key: str) -> None:
        nonlocal filled
        path.unlink()
        write_secret_file(path, _TEXT.format(name=name, id=repository_id, url=url, key=key))
        filled = True

    try:
        yield write
    except BaseException:
        if not filled:
            path.unlink(missing_ok=True)
        raise
