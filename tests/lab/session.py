"""One lab: a libvirt connection, a folder of its own, the domains in it, and proof that nothing is left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Self

from . import machine
from .disk import Disk
from .domain import LOG_DIR, RUN_FOLDER, Workhorse, remove_domain
from .libvirtd import URI, LibvirtService
from .second import SecondLibvirt
from .trixie import trixie_root

LIBVIRT_OF_LAB = "VMBACKUP_LAB_LIBVIRT"
FOLDER_MODE = 0o711   # QEMU's user passes through; with 0700 libvirt's scratch files would be refused


class Lab:
    """Everything that one test run, demo or benchmark makes. A context manager.

    Where $VMBACKUP_LAB_LIBVIRT is "trixie", its domains are Debian 13's libvirt's, at `uri`, which keeps its folders
    of domains in `domain_folders`; else this machine's own.

    All its domains are named `vmbackup-lab-<run>-<n>`, all its files lie in `folder`. Leaving it removes
    both, and what dead runs left too: each run holds a lock that dies with it.
    """

    def __init__(self) -> None:
        self.run = secrets.token_hex(3)
        self.prefix = f"{machine.PREFIX}{self.run}-"
        self.folder = machine.LAB_DIR / self.run
        self.connection: Any = None
        self.uri, self.domain_folders, self.run_folder = URI, "/var/lib/libvirt/qemu", RUN_FOLDER
        self._service: LibvirtService
        self._other: SecondLibvirt | None = None
        self._count = 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        import libvirt

        with contextlib.ExitStack() as stack:
            self._service = stack.enter_context(LibvirtService())
            libvirt.registerErrorHandler(lambda *_: None, None)
            self.connection = libvirt.open(URI)
            stack.callback(self._disconnect)
            machine.LAB_DIR.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            self._sweep_dead_runs()
            self.folder.mkdir(mode=FOLDER_MODE)
            stack.callback(self.clean)
            stack.enter_context(_held(self.folder / "lock"))
            if os.environ.get(LIBVIRT_OF_LAB) == "trixie":
                self._use(stack.enter_context(self.second(trixie_root())))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def second(self, root: Path = Path("/"), **options: Any) -> SecondLibvirt:
        """A second libvirt beside this one, not started yet; `root`: of another system than this machine's."""
        path = self.folder / f"s{secrets.token_hex(2)}"   # sockets of QEMU's have their place in it
        path.mkdir(mode=FOLDER_MODE)
        return SecondLibvirt(path, root, **options)

    def sees(self, folder: Path) -> contextlib.AbstractContextManager[None]:
        """Inside, the lab's libvirt sees what is mounted on a folder of the lab, also where it is Debian 13's."""
        return self._other.sees(folder) if self._other else contextlib.nullcontext()

    def _use(self, other: SecondLibvirt) -> None:
        self.connection.close()
        self._other, self.connection, self.uri = other, other.connection, other.uri
        self.domain_folders, self.run_folder = other.domain_folders, other.run_folder

    @property
    def started_libvirt(self) -> bool:
        """True if libvirt did not answer and was started for this lab."""
        return self._service.started

    def new_folder(self, kind: str) -> Path:
        """A new empty folder in the lab, owned by QEMU's user: images, scratch files, repositories."""
        path = self.folder / f"{kind}-{secrets.token_hex(4)}"
        path.mkdir(mode=FOLDER_MODE)
        os.chown(path, *machine.qemu_user())
        return path

    def new_name(self) -> str:
        """A domain's name that nobody else uses."""
        self._count += 1
        return f"{self.prefix}{self._count}"

    def workhorse(self, *disks: Disk, start: bool = True) -> Workhorse:
        """A new workhorse with these disks (one of 64 MiB unless told), started paused."""
        name = self.new_name()
        folder = self.new_folder("domain")
        horse = Workhorse(self.connection, name, folder, disks or (Disk(),), self.run_folder)
        if start:
            horse.start()
        return horse

    def leftovers(self) -> list[str]:
        """What of this run is still on the machine, a line each; empty when all is clean."""
        found = [f"domain {domain.name()}" for domain in self.connection.listAllDomains()
                 if domain.name().startswith(self.prefix)]
        own = [self.folder / "lock", *([self._other.folder] if self._other else [])]
        found += [f"process {pid}: {command}" for pid, command in _processes(self._marks())
                  if not any(f"{path}/" in command for path in own[1:])]
        found += [f"mount {point}" for point in _mounts(self.folder)]
        found += [f"file {path}" for path in self.folder.rglob("*") if not any(map(path.is_relative_to, own))]
        found += [f"folder {path}" for path in Path("/var/lib/libvirt/qemu").glob(f"domain-*-{self.prefix}*")]
        found += [f"file {path}" for path in LOG_DIR.glob(f"{self.prefix}*")]
        return found

    def clean(self) -> None:
        """Ends and deletes all that `leftovers` would list, also when libvirtd has died under the run."""
        import libvirt

        try:
            self.connection.listDomainsID()
        except libvirt.libvirtError:
            self._service.revive()
            self.connection = libvirt.open(URI)
        _remove_run(self.connection, self.run)

    def clean_below(self, folder: Path, names: Iterable[str]) -> None:
        """Ends the domains whose names begin so, and the processes of a folder, and deletes it."""
        starts = tuple(names)
        for domain in self.connection.listAllDomains():
            if domain.name().startswith(starts):
                remove_domain(domain)
        for pid, _ in _processes((f"{folder}/",)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for start in starts:   # of domains that the page's commands have undefined
            for log in LOG_DIR.glob(f"{start}*"):
                log.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)

    def _disconnect(self) -> None:
        self.connection.close()   # not the one of the start, if libvirt died meanwhile

    def _marks(self) -> tuple[str, ...]:
        return self.prefix, f"{self.folder}/"

    def _sweep_dead_runs(self) -> None:
        for folder in machine.LAB_DIR.iterdir():
            with contextlib.suppress(OSError), (folder / "lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove_run(self.connection, folder.name)


@contextlib.contextmanager
def _held(path: Path) -> Iterator[IO[str]]:
    """Holds a lock that dies with this process."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


def _remove_run(connection: Any, run: str) -> None:
    prefix, folder = f"{machine.PREFIX}{run}-", machine.LAB_DIR / run
    for domain in connection.listAllDomains():
        if domain.name().startswith(prefix):
            remove_domain(domain)
    for pid, _ in _processes((prefix, f"{folder}/")):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for log in LOG_DIR.glob(f"{prefix}*"):   # of domains that were undefined by somebody else
        log.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _processes(marks: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Other processes whose command line names a domain or file of the run."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        pid = int(path.parent.name)
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
        if pid != os.getpid() and any(mark in command for mark in marks):
            yield pid, command[:200]


def _mounts(folder: Path) -> list[str]:
    """Mount points below a folder (proc(5), mountinfo, field 5)."""
    points = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return [point for point in points if point.startswith(f"{folder}/")]
