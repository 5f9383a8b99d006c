"""The secrets of a repository: its passphrase, by a file, credential, command or terminal, and its bucket's keys."""

import contextlib
import os
import secrets
import shlex
import stat
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from vmbackup.config.models import Repository
from vmbackup.durable import sync_folder
from vmbackup.errors import AccessError, ConfigError

_LONGEST = 64 << 10  # bytes of a passphrase file: more is not a passphrase
_COMMAND_SECONDS = 60.0  # a password manager may ask a server, a hung one must not hang backups
_RANDOM_BYTES = 32  # 256 bits: what nobody has to remember needs no stretching


def read_passphrase(
    name: str,
    repository: Repository,
    *,
    ask: Callable[[str], str] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> str:
    """The passphrase of repository `name`; `ask` prompts for it where the file names no source of one.

    Raises AccessError where there is none, ConfigError where the source is broken.
    """
    if repository.passphrase_file is not None:
        return read_passphrase_file(repository.passphrase_file)
    if repository.passphrase_credential is not None:
        return read_passphrase_file(credential(repository.passphrase_credential, environ))
    if repository.passphrase_command is not None:
        return _from_command(repository.passphrase_command.get_secret_value())
    if ask is not None:
        return ask(f"Passphrase of repository {name}")
    hint = f"add passphrase_file to [repositories.{name}], or run this on a terminal"
    raise AccessError(f'no passphrase for repository "{name}" is known', hint)


def credential(name: str, environ: Mapping[str, str] = os.environ) -> Path:
    """The file of a credential that systemd gave to this process (systemd.exec(5)). AccessError where it gave none."""
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        hint = f"add LoadCredential={name}:FILE to the unit; on a terminal: docs/operations.md, Installing"
        raise AccessError(f'systemd gave this process no credentials, so not "{name}"', hint)
    return Path(folder) / name


def make_passphrase_file(path: Path) -> str:
    """A new random passphrase, written to `path` (0600, never over an existing file). ConfigError."""
    passphrase = secrets.token_urlsafe(_RANDOM_BYTES)
    write_secret_file(path, passphrase + "\n")
    return passphrase


def write_secret_file(path: Path, text: str) -> None:
    """`text` in a new file of mode 0600, on disk before this returns; folders are made. ConfigError."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)
    except FileExistsError:
        raise ConfigError(f"{path} exists already", "move it away, or name another file") from None
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", "check its folder") from None


def replace_secret_file(path: Path, text: str) -> None:
    """`text` in place of what the file held, in one step: at no instant it holds neither. ConfigError.

    A link stays one, and what it leads to is replaced.
    """
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    write_secret_file(temporary, text)
    try:
        with contextlib.suppress(FileNotFoundError):
            found = path.stat()
            os.chown(temporary, found.st_uid, found.st_gid)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConfigError(f"cannot write {path}: {error.strerror}", "check its folder") from None


def read_passphrase_file(path: Path) -> str:
    """The passphrase in a file. AccessError where it cannot be read, ConfigError where it holds none."""
    hint = "bring the file back, or run 'vmbackup init' if the repository is new"
    return _clean(_content(path, "passphrase file", hint), str(path), "passphrase")


def read_key_file(path: Path, what: str) -> str:
    """The one line in a file that holds a key of S3; `what` it is ("access key"). AccessError, ConfigError."""
    hint = f"put the {what} alone into it, with mode 0600"
    key = _clean(_content(path, f"{what} file", hint), str(path), what).strip()
    if not key.isascii() or not key.isprintable() or " " in key or not key:
        raise ConfigError(f"{path} holds no {what}", hint)
    return key


def writer_key_path(repository: Repository, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The file of the writer's key, None for a repository that opens with a passphrase. AccessError."""
    if repository.writer_key_credential is not None:
        return credential(repository.writer_key_credential, environ)
    return repository.writer_key_file


def read_writer_key(path: Path) -> str:
    """The text of a writer's key file. AccessError where it cannot be read, ConfigError where others may read it."""
    content = _content(path, "writer key file", "make one with 'vmbackup key add-writer', and bring it here")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise ConfigError(f"the writer key file {path} has mode {mode:04o}: others may read it", f"chmod 600 {path}")
    if len(content) > _LONGEST:
        raise ConfigError(f"{path} is too large for a writer key", "correct writer_key_file")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no writer key", "correct writer_key_file") from None


def _content(path: Path, what: str, hint: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LONGEST + 1)
    except FileNotFoundError:
        raise AccessError(f"the {what} {path} does not exist", hint) from None
    except OSError as error:
        raise AccessError(f"cannot read the {what} {path}: {error.strerror}", "run this as root") from None


def _from_command(command: str) -> str:
    try:
        words = shlex.split(command)
        done = subprocess.run(words, stdout=subprocess.PIPE, timeout=_COMMAND_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        message = f"passphrase_command gave no answer within {_COMMAND_SECONDS:.0f} s"
        raise ConfigError(message, "run it by hand") from None
    except (OSError, ValueError, IndexError) as error:
        raise ConfigError(f"passphrase_command cannot be run: {error}", "run it by hand") from None
    if done.returncode:
        raise ConfigError(f"passphrase_command ended with {done.returncode}", "run it by hand to see why")
    return _clean(done.stdout, "the output of passphrase_command", "passphrase")


def _clean(content: bytes, source: str, what: str) -> str:
    """The one line that is no comment, without its end. A lone line is taken as it stands, with # and spaces."""
    if len(content) > _LONGEST:
        raise ConfigError(f"{source} is too large for a {what}", f"put the {what} alone into it")
    try:
        text = content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise ConfigError(f"{source} is not UTF-8 text", f"put the {what} alone into it") from None
    if "\n" in text:
        text = "\n".join(line for line in text.split("\n") if not line.startswith("#"))
    if not text:
        raise ConfigError(f"{source} is empty", f"put the {what} into it")
    if "\n" in text:
        raise ConfigError(f"{source} has more than one line", f"put the {what} alone into it")
    return text
