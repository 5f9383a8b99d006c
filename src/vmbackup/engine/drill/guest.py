"""The throw-away guest of a drill: the point served to it, overlays above that, and the XML of a guest on its own."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vmbackup.engine.drill.bench import Bench
from vmbackup.engine.images.qemu_img import run_tool
from vmbackup.engine.images.target_errors import told
from vmbackup.engine.restore.boot_files import FOLDER, BootFiles
from vmbackup.engine.serve.served import ServedPoint
from vmbackup.errors import DamageError, HypervisorError, TargetError
from vmbackup.hypervisor import Host
from vmbackup.hypervisor.define.guest_state import GuestState
from vmbackup.hypervisor.define.inventory import read_capabilities
from vmbackup.hypervisor.documents import DOMAIN_XML, TPM_STATES, UEFI_VARIABLES
from vmbackup.hypervisor.rebuild.guest import rebuild
from vmbackup.hypervisor.rebuild.isolate import Isolated, isolate
from vmbackup.hypervisor.rebuild.wishes import NbdSource, NewDisk, Rebuilt, Wishes
from vmbackup.hypervisor.started.throwaway import Throwaway
from vmbackup.hypervisor.tidy.owners import let_in
from vmbackup.nbd.address import UnixAddress
from vmbackup.nbd.channel import Buffer
from vmbackup.nbd.errors import CannotListen, NbdError
from vmbackup.nbd.export import Export
from vmbackup.nbd.extents import Extent
from vmbackup.nbd.server import NbdServer
from vmbackup.progress import SILENT
from vmbackup.repository.points import Point
from vmbackup.repository.repository import Repository

# What is thrown away need not be safe; a guest is told of what cannot be read, as it would be by a broken disk.
_DRIVER: Mapping[str, str | None] = {
    "cache": "unsafe",
    "io": None,
    "discard": "unmap",
    "error_policy": "stop",
    "rerror_policy": "report",
}
# What a host may lack and a guest not come up without.
_GRAVE = ("machine", "firmware", "secrets", "launch-security")


@dataclass(frozen=True)
class DrillGuest:
    """It runs. `isolated`: what it was made of; `unread`: why parts of the point could not be read, as it happens."""

    domain: Throwaway
    isolated: Isolated
    unread: Sequence[str] = field(default_factory=list)


class _Noted:
    """An export that notes what could not be read of it."""

    def __init__(self, export: Export, unread: list[str]) -> None:
        self._export, self._unread = export, unread
        self.size = export.size

    def read(self, offset: int, length: int) -> Sequence[Buffer]:
        """See Export."""
        with self._noting():
            return self._export.read(offset, length)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """See Export."""
        with self._noting():
            yield from self._export.extents(offset, length)

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except NbdError as error:
            if len(self._unread) < 1:
                self._unread.append(str(error))
            raise


@contextlib.contextmanager
def running(
    host: Host, repository: Repository, point: Point, bench: Bench, memory: int | None, owner: tuple[int, int]
) -> Iterator[DrillGuest]:
    """The guest, from its start to the end of the block. Raises DamageError, HypervisorError, TargetError."""
    documents = repository.documents(point)
    # All of them, whatever this host has: what is stored is to be shown to boot.
    boot_files = BootFiles(repository, point).lay_out(bench.path(FOLDER), SILENT, every=True)
    isolated, rebuilt = _planned(host, point, bench, documents, boot_files, memory)
    unread: list[str] = []
    served, state = ServedPoint(repository, point), GuestState(host.places.domain_folders)
    with contextlib.ExitStack() as stack:
        stack.callback(served.close)
        exports = {target: _Noted(export, unread) for target, export in served.exports.items()}
        stack.enter_context(_listening(NbdServer(exports, UnixAddress(bench.socket))))
        _open(Path(bench.socket), owner)
        for path in boot_files.values():
            _open(path, owner)
        for number, disk in enumerate(point.disks):
            _overlay(bench, number, disk.target, disk.virtual_size, owner)
        bench.write_down(rebuilt.uuid)
        stack.callback(state.undo)
        state.put(rebuilt, documents, None)
        if rebuilt.nvram is not None:
            _open(rebuilt.nvram, owner)
        try:
            domain = stack.enter_context(Throwaway.start(host.connection, rebuilt.xml))
        except HypervisorError as error:
            raise with_cause(error, unread) from error
        yield DrillGuest(domain, isolated, unread)


class UnreadableError(HypervisorError):
    """Part of the restore point could not be read, and `what` came of that."""

    def __init__(self, what: str, unread: Sequence[str], word: str = "for") -> None:
        told = f"{what}, {word} a part of the restore point could not be read: {unread[0]}"
        super().__init__(told, "'vmbackup verify --read-data' tells what suffers")


def with_cause(error: HypervisorError, unread: Sequence[str]) -> HypervisorError:
    """The error, and what of the restore point could not be read: then that is why."""
    return UnreadableError(error.message, unread, "but") if unread else error


@contextlib.contextmanager
def _listening(server: NbdServer) -> Iterator[None]:
    try:
        server.start()
    except CannotListen as error:
        raise TargetError(str(error), "set [libvirt] scratch_dir to a folder with a shorter path") from error
    try:
        yield
    finally:
        server.shutdown()


def _planned(
    host: Host,
    point: Point,
    bench: Bench,
    documents: Mapping[str, bytes],
    boot_files: Mapping[str, Path],
    memory: int | None,
) -> tuple[Isolated, Rebuilt]:
    xml = documents.get(DOMAIN_XML, b"").decode(errors="replace")
    try:
        isolated = isolate(xml, {disk.target for disk in point.disks}, memory, f"drill of {point.domain}: {point.id}")
        capabilities = read_capabilities(host.connection, isolated.xml)
    except ValueError:
        raise DamageError(f"restore point {point.id} holds no definition of its guest (domain.xml)") from None
    rebuilt = rebuild(isolated.xml, _wishes(point, bench, documents, boot_files), capabilities)
    if grave := [lack for lack in rebuilt.lacking if lack.kind in _GRAVE]:
        raise HypervisorError("; ".join(map(str, grave)), "; ".join(lack.hint for lack in grave if lack.hint))
    return isolated, rebuilt


def _wishes(
    point: Point, bench: Bench, documents: Mapping[str, bytes], boot_files: Mapping[str, Path]
) -> Wishes:
    disks = {
        disk.target: NewDisk(
            bench.path(f"{number}.qcow2"), backing=NbdSource(disk.target, Path(bench.socket)), driver=_DRIVER
        )
        for number, disk in enumerate(point.disks)
    }
    variables = documents.get(UEFI_VARIABLES)
    return Wishes(
        name=bench.place.name,
        networks=None,
        disks=disks,
        nvram=bench.path("nvram.fd") if variables is not None else None,
        nvram_bytes=len(variables or b""),
        tpm=any(name in documents for name in TPM_STATES.values()),
        boot_files=boot_files,
    )


def _overlay(bench: Bench, number: int, target: str, size: int, owner: tuple[int, int]) -> None:
    """An empty image above what is served: it takes all that the guest writes. Raises TargetError."""
    path = bench.path(f"{number}.qcow2")
    below = UnixAddress(bench.socket).uri(target)
    run_tool(
        ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", below, "-F", "raw", str(path), str(size)], path
    )
    _open(path, owner)


def _open(path: Path, owner: tuple[int, int]) -> None:
    with told(path):
        let_in(path, owner)
