"""A guest that runs from the repository: booted within seconds, listed, started again, discarded."""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from vmbackup.engine.boot import boot_files
from vmbackup.engine.boot.images import make_overlays, remove_images, remove_overlays, written_bytes
from vmbackup.engine.boot.keeping import Keeping
from vmbackup.engine.boot.proof import hang_again
from vmbackup.engine.boot.records import Booted, BootedDisk, BootStore, check_name, check_socket
from vmbackup.engine.boot.server import read_state
from vmbackup.engine.care.verify import verify
from vmbackup.engine.restore.boot_files import BootFiles
from vmbackup.errors import DamageError, HypervisorError, UsageError
from vmbackup.hypervisor import Host
from vmbackup.hypervisor.define.define import DefineOptions, Definition, define, plan_definition
from vmbackup.hypervisor.documents import DOMAIN_XML
from vmbackup.hypervisor.rebuild.wishes import EVERY_NETWORK, NO_NETWORK, OPTIONAL, NbdSource, NewDisk
from vmbackup.hypervisor.started.boot_xml import POLICIES, RECONNECT_SECONDS, policies
from vmbackup.hypervisor.started.booted import BootedDomain, State
from vmbackup.hypervisor.xmltree import parse
from vmbackup.progress import Progress
from vmbackup.repository.points import Point
from vmbackup.repository.repository import Repository

_FOLDER = "boot"  # of the overlays, below the folder of scratch files


@dataclass(frozen=True)
class BootOptions:
    """`network`: the one of this host that the guest is connected to, None for none. `serve`: see Booted."""

    name: str
    network: str | None
    serve: tuple[str, ...]


@dataclass(frozen=True)
class BootSummary:
    """What runs now. `seconds`: from the call to the start of the guest; `notes`: what of it was changed for here."""

    booted: Booted
    seconds: float
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class ListedBoot:
    """A booted guest as it stands. `served`: its server answers; `error`: why not; `overlay_bytes`: what it wrote."""

    booted: Booted
    state: State
    served: bool
    error: str | None
    overlay_bytes: int


class Boots:
    """The booted guests of a host."""

    def __init__(self, host: Host, store: BootStore, keeping: Keeping) -> None:
        self.host, self.store, self.keeping = host, store, keeping

    def domain(self, booted: Booted) -> BootedDomain:
        """The domain of a booted guest."""
        return BootedDomain(self.host.connection, booted.uuid, booted.name)

    def boot(self, repository: Repository, point: Point, options: BootOptions, progress: Progress) -> BootSummary:
        """Starts a new guest on what the point is served as; leaves nothing where that fails.

        Raises DamageError, AccessError, TargetError, UsageError, HypervisorError.
        """
        self.host.require_here("booting a restore point", "restore it")
        started = time.monotonic()
        with self.store.at_work(options.name):
            self.check_free(options.name)
            self._tidy(options.name)
            repository.check_may_read()
            booted, definition = self._plan(repository, point, options)
            with self._undone_on_failure(booted):
                self.store.put(booted)
                self.keeping.start(booted)
                _check_whole(repository, point, progress)
                make_overlays(booted)
                BootFiles(repository, point).lay_out(boot_files.folder_of(booted), progress)
                define(self.host.connection, self.host.places.domain_folders, definition)
                self.keeping.wait(booted)
                self.domain(booted).start()
            booted = replace(booted, phase="booted")
            self.store.put(booted)
        return BootSummary(booted, time.monotonic() - started, definition.rebuilt.notes, definition.warnings)

    def start(self, name: str) -> Booted:
        """Serves the point of a booted guest again, and starts or resumes the guest: after a restart of the host."""
        booted = self.store.require(name)
        with self.store.at_work(name):
            self.keeping.start(booted)
            self.keeping.wait(booted)
            domain = self.domain(booted)
            state = domain.state()
            if state == "gone":
                raise HypervisorError(f"the domain {name} is gone", f"'vmbackup boot --discard {name}' tidies up")
            if state == "off":
                if booted.phase == "finishing":
                    hang_again(booted, domain)
                domain.start()
            elif state == "error":
                domain.resume()
        return booted

    def discard(self, name: str) -> Booted:
        """Ends a booted guest and removes all of it, what it wrote too. May be called again after it was killed."""
        booted = self.store.require(name)
        with self.store.at_work(name):
            self._remove(booted)
        return booted

    def list(self) -> list[ListedBoot]:
        """All of this host, by name."""
        return [self._listed(booted) for booted in self.store.all()]

    def _listed(self, booted: Booted) -> ListedBoot:
        server = read_state(self.store, booted.name)
        served = server.ready and server.alive
        error = None if served else (server.error or {}).get("message")
        return ListedBoot(booted, self.domain(booted).state(), served, error, written_bytes(booted))

    def check_free(self, name: str) -> None:
        """Whether a guest of that name can be booted. Raises UsageError, HypervisorError."""
        check_name(name)
        found = self.store.get(name)
        if found is not None and found.phase != "making":
            raise HypervisorError(
                f"a guest {name} is booted already",
                f"'vmbackup boot --finish {name}' or '--discard {name}' ends that; or give another --name",
            )
        own = found.uuid if found else ""  # of a boot that was killed, and is made again
        if any(domain.name == name and domain.uuid != own for domain in self.host.domains()):
            raise HypervisorError(f"there is a domain {name} already", "give another --name")

    def _tidy(self, name: str) -> None:
        """Removes what a boot that was killed has left."""
        found = self.store.get(name)
        if found is not None and found.phase == "making":
            self._remove(found)

    def _plan(self, repository: Repository, point: Point, options: BootOptions) -> tuple[Booted, Definition]:
        """The guest to be. Raises HypervisorError where this host cannot give it what it cannot do without."""
        documents = repository.documents(point)
        folder = Path(self.host.places.scratch_dir) / _FOLDER / options.name
        booted = Booted(
            name=options.name,
            uuid="",
            point=point.id,
            origin=point.domain,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            folder=str(folder),
            owner=(os.geteuid(), os.getegid()),
            serve=options.serve,
            disks=plan_disks(point),
        )
        check_socket(booted)
        networks = {EVERY_NETWORK: options.network or NO_NETWORK}
        # With the host it is not started before it stands alone: its server may not be there.
        copies, notes = BootFiles(repository, point).places(boot_files.folder_of(booted))
        wishes = DefineOptions(
            options.name, networks=networks, without=frozenset(OPTIONAL), autostart=False, boot_files=copies
        )
        places = self.host.places.domain_folders
        plan = plan_definition(self.host.connection, places, documents, _overlays(booted), wishes)
        if options.network is not None and not parse(plan.rebuilt.xml).findall("./devices/interface"):
            raise UsageError(f"{point.domain} has no network interface", "leave --network out")
        plan = replace(plan, warnings=(*plan.warnings, *notes))
        given = policies(documents[DOMAIN_XML].decode())
        return replace(booted, uuid=plan.rebuilt.uuid, owner=plan.owner or booted.owner, policies=given), plan

    def _remove(self, booted: Booted) -> None:
        """The guest first: it must not see its disks go."""
        self.domain(booted).remove()
        self.keeping.end(booted)
        remove_images(booted)
        boot_files.remove(booted)
        remove_overlays(booted)
        self.store.remove(booted.name)

    @contextlib.contextmanager
    def _undone_on_failure(self, booted: Booted) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._remove(booted)
            raise


def _overlays(booted: Booted) -> dict[str, NewDisk]:
    """Each disk as an overlay on what is served."""
    socket = Path(booted.socket)
    return {
        disk.target: NewDisk(
            Path(booted.overlay(disk.target)),
            backing=NbdSource(disk.target, socket, reconnect_seconds=RECONNECT_SECONDS),
            driver=POLICIES,
        )
        for disk in booted.disks
    }


def plan_disks(point: Point) -> tuple[BootedDisk, ...]:
    """The disks of a point as overlays need them."""
    return tuple(BootedDisk(disk.target, disk.virtual_size, dict(disk.attributes)) for disk in point.disks)


def _check_whole(repository: Repository, point: Point, progress: Progress) -> None:
    """Whether all that the point needs is there. Raises DamageError."""
    found = verify(repository, [point], None, progress, record=False)
    if found.damaged:
        first = found.damaged[0]
        more = f", and {len(found.damaged) - 1} more" if len(found.damaged) > 1 else ""
        raise DamageError(
            f"restore point {point.id} is damaged: {first.object} {first.problem}{more}",
            f"boot an earlier one ('vmbackup list {point.domain}'), or heal it with 'vmbackup repair'",
            object_key=first.object,
        )
