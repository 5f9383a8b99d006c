"""One run per domain on this host: a lock file per domain UUID, freed by the kernel when its holder dies."""

import fcntl
import os
from typing import Self

from vmbackup.errors import HypervisorError, JobConflictError


class DomainLock:
    """Held from construction until `release`. Files stay: unlinking one would let two runs hold "the" lock.

    Raises JobConflictError naming the process that holds it.
    """

    def __init__(self, state_dir: str, uuid: str, domain_name: str) -> None:
        folder = os.path.join(state_dir, "locks")
        path = os.path.join(folder, f"{uuid}.lock")
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HypervisorError(
                f"the lock {path} cannot be opened: {error.strerror}", "set [daemon] state_dir to a writable folder"
            ) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            raise JobConflictError(
                f"another run works on domain {domain_name} (process {holder})", "try again when it has ended"
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Frees it; may be called twice."""
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1
