"""What a host remembers of a repository, so that a store cannot put an older or another one in its place."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from vmbackup.durable import replace_file
from vmbackup.errors import DamageError
from vmbackup.repository.crypto import digest


@dataclass(frozen=True)
class Seen:
    """The repository at a place as this host last saw it; ids and keys in hex. `slot` opened with the secret used."""

    repository: str
    realm: str
    verify_key: str
    version: int
    slot: str = ""


class Trust:
    """One small file a place (`Store.place`), in the host's state folder. With no folder nothing is remembered."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def _path(self, url: str) -> Path | None:
        return self._folder and self._folder / f"{digest(url.encode()).hex()[:16]}.json"

    def recall(self, url: str) -> Seen | None:
        """What was seen there before; None the first time."""
        path = self._path(url)
        try:
            return Seen(**json.loads(path.read_text())) if path else None
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, OSError) as error:
            raise DamageError(
                f"{path}, which remembers the repository at {url}, cannot be read", "restore or delete that file"
            ) from error

    def check(self, url: str, now: Seen) -> None:
        """Compares with what was seen before, and remembers. Raises DamageError."""
        before = self.recall(url)
        path = self._path(url)
        if before and (before.repository, before.realm, before.verify_key) != (
            now.repository,
            now.realm,
            now.verify_key,
        ):
            raise DamageError(
                f"{url} holds another repository or another public key than this host saw there before",
                f"if it was replaced on purpose, delete {path}",
            )
        if before and now.version < before.version:
            raise DamageError(
                f"{url} shows config version {now.version}, but this host has seen version {before.version}: "
                "the store was rolled back",
                f"find out who restored the store; to accept its older state, delete {path}",
            )
        if path and now != before:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace_file(path, json.dumps(asdict(now)).encode())

    def forget(self, url: str) -> None:
        """Another repository is being made there."""
        path = self._path(url)
        if path:
            path.unlink(missing_ok=True)
