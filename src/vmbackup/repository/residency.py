"""Where the data of a repository may lie: at hosts that its config allows (docs/repository-format.md, section 4)."""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from vmbackup.errors import RepositoryError, UsageError

if TYPE_CHECKING:
    from vmbackup.repository.keyring import Keyring

FOLDER = "file"  # a folder of this machine, also of a file system that lies elsewhere
_PATTERN = re.compile(r"[a-z0-9*][a-z0-9.*:-]{0,252}")


def location(place: str) -> str:
    """The host where a store lies (`Store.place`), in lower case; `file` for a folder."""
    if not place.startswith("s3://"):
        return FOLDER
    server = place.rpartition(" at ")[2]
    return (urlsplit(server).hostname or server).lower()


def patterns(texts: Iterable[str]) -> list[str]:
    """Hosts that are allowed, each a name or with `*` for any part of it. Raises UsageError."""
    found = sorted({text.strip().lower() for text in texts})
    for text in found:
        if not _PATTERN.fullmatch(text) or not text.strip("*."):
            raise UsageError(
                f"'{text}' is no host", "write one like fsn1.your-objectstorage.com, *.example.com, or file for folders"
            )
    return found


def check(allowed: tuple[str, ...] | None, place: str) -> None:
    """Raises RepositoryError where none of the hosts is the store's; None allows all."""
    host = location(place)
    if allowed is not None and not any(fnmatchcase(host, pattern) for pattern in allowed):
        raise RepositoryError(
            f"the data of this repository may not lie at {host}: it is allowed at {', '.join(allowed)} only",
            "use it where it may lie; who has the passphrase can allow more there with 'vmbackup residency'",
        )


def first(allowed: Iterable[str] | None, place: str) -> list[str] | None:
    """What the config says where data may lie; this place must be among it. Raises UsageError."""
    wanted = patterns(allowed) if allowed is not None else None
    try:
        check(None if wanted is None else tuple(wanted), place)
    except RepositoryError as error:
        raise UsageError(error.message, f"allow {location(place)} too, where it lies") from None
    return wanted


def restrict(repository: "Keyring", allowed: Iterable[str] | None) -> None:
    """From now on data may lie at these hosts only, or (None) anywhere. AccessError, UsageError, RepositoryError."""
    repository.check_may_change()
    wanted = first(allowed, repository.store.place)
    repository.change_config(lambda _: {"allowed_endpoints": wanted}, "nothing was changed")
