"""What is kept on a host of each guest that was booted from a restore point, until it stands alone or is discarded."""

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from vmbackup.durable import replace_file, sync_folder
from vmbackup.errors import JobConflictError, NotFoundError, TargetError, UsageError
from vmbackup.hypervisor.started.aside import FOLDER

_VERSION = 1
# It is the name of files, of a unit of systemd, and a part of a socket's path, which has 107 bytes.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,49}")
_SOCKET_BYTES = 107  # unix(7)


@dataclass(frozen=True)
class BootedDisk:
    """A disk: its size in bytes, its image's attributes at the time of the restore point."""

    target: str
    size: int
    attributes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Booted:
    """A booted guest. `origin`: the domain of the restore point `point`, `created`: when it was booted (ISO 8601).

    `folder` holds its overlays and the server's `socket`; `owner` is QEMU's user. `serve` are the arguments of vmbackup
    that serve the point. `policies` are to be given back to its disks' drivers. `phase`: `making` until it was started
    for the first time, `finishing` from when `output`, the folder of its disks to be, was decided on, `whole` when
    these hold all, and what it hung on is to be removed; `woken`: it was off, and runs paused only to be finished.
    """

    name: str
    uuid: str
    point: str
    origin: str
    created: str
    folder: str
    owner: tuple[int, int]
    serve: tuple[str, ...]
    disks: tuple[BootedDisk, ...]
    policies: dict[str, dict[str, str]] = field(default_factory=dict)
    phase: Literal["making", "booted", "finishing", "whole"] = "making"
    output: str | None = None
    woken: bool = False

    @property
    def socket(self) -> str:
        """Where the point is served."""
        return os.path.join(self.folder, "nbd.sock")

    def overlay(self, target: str) -> str:
        """The image that takes what the guest writes."""
        return os.path.join(self.folder, f"{target}.qcow2")

    def image(self, target: str) -> str:
        """The disk to be."""
        return os.path.join(self.output or "", f"{target}.qcow2")

    @classmethod
    def load(cls, data: dict[str, Any]) -> Self:
        """From JSON's plain values. Raises ValueError, KeyError, TypeError for anything else."""
        values = dict(data)
        if values.pop("version") != _VERSION:
            raise ValueError("the state of another version")
        values["owner"] = (int(values["owner"][0]), int(values["owner"][1]))
        values["serve"] = tuple(values["serve"])
        values["disks"] = tuple(BootedDisk(**disk) for disk in values["disks"])
        return cls(**values)


class BootStore:
    """A file a guest, below the state folder."""

    def __init__(self, state_dir: Path) -> None:
        self.folder = state_dir / FOLDER

    def all(self) -> list[Booted]:
        """By name. Raises TargetError where one cannot be read."""
        return [self._read(path) for path in sorted(self.folder.glob("*.json"))]

    def get(self, name: str) -> Booted | None:
        """The guest of that name."""
        path = self.path(name, "json")
        return self._read(path) if path.exists() else None

    def require(self, name: str) -> Booted:
        """The guest of that name. Raises NotFoundError."""
        found = self.get(name) if _NAME.fullmatch(name) else None
        if found is None:
            names = ", ".join(booted.name for booted in self.all())
            raise NotFoundError(
                f"no guest {name} hangs on a repository here",
                f"those that do: {names}" if names else "none does: it was finished or discarded, or never booted",
            )
        return found

    def put(self, booted: Booted) -> None:
        """On disk before this returns. Raises TargetError."""
        path = self.path(booted.name, "json")
        text = json.dumps({"version": _VERSION, **asdict(booted)}, indent=1)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(path, text.encode())
        except OSError as error:
            raise TargetError(f"cannot write {path}: {error.strerror}", "run this as root") from error

    def remove(self, name: str) -> None:
        """Nothing of it stays."""
        for kind in ("server", "log", "point", "keeper", "json", "work"):
            self.path(name, kind).unlink(missing_ok=True)
        sync_folder(self.folder)

    def path(self, name: str, kind: str) -> Path:
        """A file of a guest's."""
        return self.folder / f"{name}.{kind}"

    @contextlib.contextmanager
    def at_work(self, name: str) -> Iterator[None]:
        """One command at a time for a guest. Raises JobConflictError."""
        with held(self.path(name, "work")) as got:
            if not got:
                raise JobConflictError(
                    f"another 'vmbackup boot' works on {name}", "wait for it, or end it; then run this again"
                )
            yield

    def _read(self, path: Path) -> Booted:
        try:
            return Booted.load(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            hint = "a newer vmbackup wrote it, or it is damaged"
            raise TargetError(f"{path} cannot be read: {error}", hint) from None


@contextlib.contextmanager
def held(path: Path) -> Iterator[bool]:
    """Whether the lock of that file was free; then it is held, and dies with this process. It names the process."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        got = _lock(fd) and _is(fd, path)  # the file of a guest that is gone is locked in vain
        if got:
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield got
    finally:
        os.close(fd)


def holder(path: Path) -> int | None:
    """The process that holds the lock of that file, None where nobody does."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        if _lock(fd):
            return None
        text = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        return int(text) if text.isdecimal() else None
    finally:
        os.close(fd)


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def check_name(name: str) -> str:
    """A name for a new guest. Raises UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' is no name for a booted guest", "take letters, digits, '-', '_' and '.', at most 50 of them"
        )
    return name


def check_socket(booted: Booted) -> None:
    """Raises UsageError where the socket's path is too long."""
    if len(os.fsencode(booted.socket)) > _SOCKET_BYTES:
        raise UsageError(
            f"the socket {booted.socket} has a longer name than sockets may have",
            "give a shorter --name, or set [libvirt] scratch_dir to a shorter path",
        )
