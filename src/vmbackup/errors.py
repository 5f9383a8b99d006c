"""The errors of vmbackup: one sentence of what is wrong, one of what to do, an exit code.

VmbackupError                     1  failed
├── UsageError                    2  wrong usage
│   └── ConfigError               2  wrong configuration
├── DamageError                   4  something in the repository is damaged
├── NotFoundError                 5  no such domain, disk, restore point, repository or file
├── AccessError                   6  wrong passphrase or key, or a key that may not do it
├── RepositoryError               1  the repository cannot be used (newer version, in the way, older than seen)
├── HypervisorError               1  libvirt or QEMU refused or failed
│   ├── JobConflictError          1  another job runs on the domain; try later
│   ├── PointInTimeLostError      1  the job ended while it was read: nothing may be committed
│   ├── ScratchFullError          1  no space for scratch files
│   └── QuiesceError              1  the guest could not be frozen, and that was required
├── TargetError                   1  the place to restore to is in the way, too small or full
├── GuestFilesError               1  the guest's file systems cannot be looked into
└── ServiceError                  1  the service does not run, or does not answer
"""

from typing import ClassVar


class VmbackupError(Exception):
    """An expected failure. The caller may print it and go on with other domains.

    `message` is one sentence of what is wrong; `hint` one of what to do ("" where nothing helps);
    `exit_code` and `kind` are stable (docs/operations.md lists them).
    """

    exit_code: ClassVar[int] = 1
    kind: ClassVar[str] = "failed"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(VmbackupError):
    """The command cannot be meant. The caller corrects it."""

    exit_code = 2
    kind = "usage"


class ConfigError(UsageError):
    """The configuration is wrong. The caller corrects the file."""

    kind = "config"


class DamageError(VmbackupError):
    """Something in the repository is missing, cut or changed. Nothing that was read may be used.

    `object_key` names the object where one is known.
    """

    exit_code = 4
    kind = "damaged"

    def __init__(self, message: str, hint: str = "", *, object_key: str | None = None) -> None:
        super().__init__(message, hint or "run 'vmbackup verify --read-data' to see which restore points suffer")
        self.object_key = object_key


class NotFoundError(VmbackupError):
    """The named domain, disk, restore point, repository or file does not exist."""

    exit_code = 5
    kind = "not_found"


class AccessError(VmbackupError):
    """The passphrase or key is wrong, or may not do this."""

    exit_code = 6
    kind = "access"


class RepositoryError(VmbackupError):
    """The repository cannot be used as it stands; nothing in it was changed."""

    kind = "repository"


class HypervisorError(VmbackupError):
    """libvirt or QEMU refused or failed. The previous restore point stays the base of the next run."""

    kind = "hypervisor"


class JobConflictError(HypervisorError):
    """Another job holds the domain. The caller tries again later."""

    kind = "job_conflict"


class PointInTimeLostError(HypervisorError):
    """The backup job ended before the last byte was proved: what was read must not be committed."""

    kind = "point_in_time_lost"


class ScratchFullError(HypervisorError):
    """Scratch space is too small or ran full. The guest runs on; the run has failed."""

    kind = "scratch_full"


class QuiesceError(HypervisorError):
    """The guest could not be frozen although the policy requires it."""

    kind = "quiesce"


class TargetError(VmbackupError):
    """The place to restore to is in the way, in use, too small or full. No half-written file was left."""

    kind = "target"


class GuestFilesError(VmbackupError):
    """The guest's file systems cannot be looked into: encrypted, unknown, or what reads them lacks."""

    kind = "guest_files"


class ServiceError(VmbackupError):
    """The service does not run on this host, or does not answer. The caller starts it."""

    kind = "service"
