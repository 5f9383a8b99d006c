"""The control socket's file: made in one step with its mode and group, one service at a time, removed at the end."""

import contextlib
import errno
import fcntl
import grp
import os
import socket
import stat
from pathlib import Path

from vmbackup.errors import ConfigError, TargetError, VmbackupError

_MODE = 0o660
_FOLDER_MODE = 0o755
_LONGEST = 107  # bytes of a path that the kernel takes (sun_path of unix(7), less its NUL)
_PROBE_SECONDS = 2.0
_BACKLOG = 128


class ControlSocket:
    """A listening socket at `path`.

    A process holds `path`.lock for as long as it listens; so of two that start at once one is refused.
    """

    def __init__(self, path: Path, group: str | None) -> None:
        """Raises ConfigError (group, path), TargetError (something in the way), VmbackupError (another service)."""
        self.path = path
        self.gid = _gid(group)
        _make_folder(path.parent)
        self._lock = _locked(path)
        try:
            _check_nobody_answers(path)
            self.socket = _listening(path, self.gid)
        except BaseException:
            os.close(self._lock)
            raise
        self._inode = path.stat().st_ino

    def close(self) -> None:
        """Stop listening; the file goes too, unless it is another's by now."""
        self.socket.close()
        with contextlib.suppress(OSError):
            if self.path.lstat().st_ino == self._inode:
                self.path.unlink()
        os.close(self._lock)


def _gid(group: str | None) -> int | None:
    if group is None:
        return None
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        hint = f"make it with 'groupadd --system {group}', or correct socket_group in [daemon]"
        raise ConfigError(f'there is no group "{group}" for the control socket', hint) from None


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(_FOLDER_MODE)  # whatever the umask: members of the group must get through
    except OSError as error:
        raise TargetError(f"cannot make the folder {folder}: {error.strerror}", "run the service as root") from None


def _locked(path: Path) -> int:
    """A descriptor that holds the lock beside `path`."""
    name = f"{path}.lock"
    try:
        lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise TargetError(f"cannot make {name}: {error.strerror}", "run the service as root") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise _another(path) from None
    return lock


def _another(path: Path) -> VmbackupError:
    return VmbackupError(f"another vmbackup daemon answers at {path}", "'systemctl status vmbackup' tells of it")


def _check_nobody_answers(path: Path) -> None:
    """What a dead service left may be replaced; anything else may not."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise TargetError(f"{path} is in the way: it is no socket", "move it, or correct socket in [daemon]")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except OSError as error:  # a full backlog, too: somebody is there
            if error.errno == errno.EACCES:
                raise TargetError(f"{path} belongs to another user", "run the service as root") from None
    raise _another(path)


def _listening(path: Path, gid: int | None) -> socket.socket:
    """Made under another name and moved, so that nobody ever finds it with a wider mode or another group."""
    making = path.with_name(f".{os.getpid()}.sock")
    if max(len(os.fsencode(path)), len(os.fsencode(making))) > _LONGEST:
        raise ConfigError(f"{path} is too long for a socket ({_LONGEST} bytes)", "shorten socket in [daemon]")
    making.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(listener.fileno(), _MODE)  # the file takes the mode of the socket, less the umask
        listener.bind(str(making))
        making.chmod(_MODE)
        if gid is not None:
            os.chown(making, -1, gid)
        listener.listen(_BACKLOG)
        making.rename(path)
    except OSError as error:
        listener.close()
        making.unlink(missing_ok=True)
        raise TargetError(f"cannot make the socket {path}: {error.strerror}", "run the service as root") from None
    return listener
