"""A booted guest moved to local disks while it runs.

New images in the folder of its disks to be are put on top of the overlays, for all disks at one instant; from then on
the guest writes there. Then QEMU pulls into them what they lack. Each step may be cut off at any moment, the guest and
QEMU included, and what was copied stays copied: the same command goes on from there.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from vmbackup.engine.boot import boot_files
from vmbackup.engine.boot.boot import Boots
from vmbackup.engine.boot.images import check_whole, hangs, make_folder, make_image, remove_overlays
from vmbackup.engine.boot.proof import hang_again, is_torn
from vmbackup.engine.boot.records import Booted, BootedDisk
from vmbackup.engine.boot.space import check_space, is_full
from vmbackup.errors import HypervisorError, TargetError, UsageError
from vmbackup.hypervisor.checks.host import closed_to
from vmbackup.hypervisor.started.booted import BootedDomain
from vmbackup.progress import Progress, told

IMAGES = Path("/var/lib/libvirt/images")  # where libvirt's own pool of images lies
_POLL = 0.25  # seconds between two looks at the copy
_WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)  # seconds after a copy that failed and had copied nothing


@dataclass(frozen=True)
class FinishedDisk:
    """A disk that stands alone; sizes in bytes."""

    target: str
    path: Path
    virtual_size: int
    written_bytes: int


@dataclass(frozen=True)
class FinishSummary:
    """A guest that hangs on nothing any more. `state`: `running`, `paused` or `off`."""

    booted: Booted
    disks: tuple[FinishedDisk, ...]
    seconds: float
    state: str


class Finish:
    """Moves one guest. `sleep` is for waits between copies that fail."""

    def __init__(self, boots: Boots, progress: Progress, sleep: Callable[[float], None] = time.sleep) -> None:
        self._boots, self._progress, self._sleep = boots, progress, sleep

    def run(self, name: str, output: Path | None) -> FinishSummary:
        """All of it, from wherever an earlier one was cut off. `output`: the folder, None for the usual or the former.

        Raises TargetError (something is in the way, no space), HypervisorError, RepositoryError (nothing is served).
        """
        started = time.monotonic()
        booted = self._boots.store.require(name)
        with self._boots.store.at_work(name):
            booted = self._aim(booted, output)
            domain = self._boots.domain(booted)
            if domain.state() == "gone":
                raise HypervisorError(f"the domain {name} is gone", f"'vmbackup boot --discard {name}' tidies up")
            while booted.phase != "whole":
                booted = self._move(self._served(booted), domain)
                booted = self._proved(booted, domain)
            return self._settle(booted, domain, started)

    def _aim(self, booted: Booted, output: Path | None) -> Booted:
        """Decides on the folder, once, and that it can be used, before anything lies there."""
        if booted.output is not None:
            if output is not None and str(output) != booted.output:
                raise UsageError(
                    f"{booted.name} is on its way to {booted.output} already", "leave --output out, and it goes on"
                )
            return booted
        folder = output or IMAGES / booted.name
        aimed = replace(booted, output=str(folder), phase="finishing")
        for disk in booted.disks:
            if os.path.lexists(aimed.image(disk.target)):
                raise TargetError(f"{aimed.image(disk.target)} is already there", "name another folder with --output")
        boot_files.check_free(aimed)
        make_folder(folder, 0o711)
        closed = closed_to(str(folder), *booted.owner)
        if closed is not None:
            raise TargetError(f"QEMU's user may not pass {closed}", f"chmod o+x {closed}, or name another --output")
        check_space(self._served(aimed))
        self._boots.store.put(aimed)
        return aimed

    def _served(self, booted: Booted) -> Booted:
        self._boots.keeping.start(booted)
        self._boots.keeping.wait(booted)
        return booted

    def _move(self, booted: Booted, domain: BootedDomain) -> Booted:
        """Until no disk hangs on anything."""
        if any(hangs(booted, disk) for disk in booted.disks):
            booted = self._awake(booted, domain)
        if not self._switched(booted, domain):
            images = {disk.target: make_image(booted, disk) for disk in booted.disks}
            domain.switch(images)
        for disk in booted.disks:
            with self._task(booted, disk) as advance:
                for done in self._pulled(booted, domain, disk):
                    advance(done)
            domain.wait_for_pulls([disk.target], _POLL)
            domain.flush()  # at once: what QEMU holds of it, nobody has
        return booted

    def _proved(self, booted: Booted, domain: BootedDomain) -> Booted:
        """Whole where its disks hold all in their files; else those that do not hang on what they lack again."""
        torn = [disk for disk in booted.disks if is_torn(booted, disk)]
        if not torn:
            for disk in booted.disks:
                check_whole(booted, disk)
            booted = replace(self._boots.store.require(booted.name), phase="whole")  # QEMU may have died meanwhile
            self._boots.store.put(booted)
            return booted
        if domain.state() != "off":
            raise self._lacking(booted, torn[0])
        hang_again(booted, domain)
        return booted

    def _lacking(self, booted: Booted, disk: BootedDisk) -> TargetError:
        """What a guest that runs on a disk which is not whole is told."""
        if is_full(booted.output or ""):
            return self._no_space(booted)
        return TargetError(
            f"{booted.image(disk.target)} lacks data: QEMU died before they were in the file, and the guest was"
            " started since",
            f"'virsh destroy {booted.name}', then run this again; or '--discard' it: it may have written nonsense",
        )

    @staticmethod
    def _no_space(booted: Booted) -> TargetError:
        return TargetError(
            f"no space is left in {booted.output}",
            "make room there, then run this again: what was copied stays copied, the guest is paused if it has to",
        )

    @contextmanager
    def _task(self, booted: Booted, disk: BootedDisk) -> Iterator[Callable[[int], None]]:
        """Tells of a disk; takes what is done so far, which may begin anew when a copy does."""
        seen = 0
        with told(self._progress, f"{booted.name} {disk.target}", disk.size) as advance:

            def tell(done: int) -> None:
                nonlocal seen
                if done > seen:
                    advance(done - seen)
                    seen = done

            yield tell

    def _pulled(self, booted: Booted, domain: BootedDomain, disk: BootedDisk) -> Iterator[int]:
        """Copies until the disk is whole, over and over where that is cut off; gives the bytes done."""
        failures, most = 0, 0
        while hangs(booted, disk):
            self._awake(booted, domain)
            before = most
            try:
                for done, _ in domain.pull(disk.target, _POLL):
                    most = max(most, done)
                    yield done
            except KeyboardInterrupt:
                domain.end_pull(disk.target)
                raise
            except HypervisorError:
                if domain.state() != "off":  # else it powered itself off meanwhile
                    raise
            if not hangs(booted, disk):
                return
            failures = 0 if most > before else failures + 1
            self._failed(booted, failures)

    def _failed(self, booted: Booted, failures: int) -> None:
        """A copy has ended too early. Raises where going on makes no sense."""
        if is_full(booted.output or ""):
            raise self._no_space(booted)
        if failures > len(_WAITS):
            raise HypervisorError(
                f"the disks of {booted.name} cannot be copied: QEMU's reads of the restore point fail",
                f"{self._boots.store.path(booted.name, 'log')} tells why; run this again then, and it goes on",
            )
        if failures:
            self._sleep(_WAITS[failures - 1])
        self._boots.keeping.start(booted)
        self._boots.keeping.wait(booted)

    def _awake(self, booted: Booted, domain: BootedDomain) -> Booted:
        """Only QEMU copies: a guest that is off is started and paused for that."""
        state = domain.state()
        if state == "off":
            booted = replace(booted, woken=True)
            self._boots.store.put(booted)
            domain.start(paused=True)
        elif state == "error" and not is_full(booted.output or booted.folder):
            domain.resume()
        return booted

    def _switched(self, booted: Booted, domain: BootedDomain) -> bool:
        """Whether the guest writes to its disks to be."""
        sources = domain.sources()
        return all(sources[disk.target][0] == booted.image(disk.target) for disk in booted.disks)

    def _settle(self, booted: Booted, domain: BootedDomain, started: float) -> FinishSummary:
        """The disks are whole: that is proved on them, then all else goes."""
        booted = self._boots.store.require(booted.name)
        if booted.woken and domain.state() in ("paused", "error"):
            domain.stop()  # as it was
        domain.stand_alone(booted.policies, boot_files.move(booted))
        disks = tuple(
            FinishedDisk(disk.target, Path(booted.image(disk.target)), disk.size, check_whole(booted, disk))
            for disk in booted.disks
        )
        state = domain.state()
        self._boots.keeping.end(booted)
        remove_overlays(booted)
        self._boots.store.remove(booted.name)
        return FinishSummary(booted, disks, time.monotonic() - started, state)
