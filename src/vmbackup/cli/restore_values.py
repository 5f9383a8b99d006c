"""What the values of restore's options mean."""

from collections.abc import Iterable
from pathlib import Path

from vmbackup.errors import UsageError, VmbackupError


def targets(values: Iterable[str]) -> dict[str, Path]:
    """Target -> path of `--to TARGET=PATH`, each once. UsageError."""
    found: dict[str, Path] = {}
    for value in values:
        target, equals, path = value.partition("=")
        if not equals or not target or not path:
            raise UsageError(f"--to {value} does not say which disk goes where", "write --to vda=/the/path")
        if target in found:
            raise UsageError(f"--to says twice where disk {target} goes", "leave one out")
        found[target] = Path(path).absolute()
    return found


def passphrases(values: Iterable[str]) -> dict[str, bytes]:
    """Target, "" for all others, -> passphrase, read from its file. UsageError, ConfigError, AccessError."""
    from vmbackup.config.secrets import read_passphrase_file

    found: dict[str, bytes] = {}
    for value in values:
        target, equals, path = value.partition("=")
        if not equals or "/" in target:
            target, path = "", value
        if target in found:
            whose = f"of disk {target}" if target else "of all disks"
            raise UsageError(f"two files are named for the passphrase {whose}", "leave one out")
        try:
            found[target] = read_passphrase_file(Path(path).absolute()).encode()
        except VmbackupError as error:
            error.hint = "name a file with the passphrase of the guest's disk, mode 0600"
            raise
    return found
