"""`restore --define`: its options, and the guest that is defined once its disks are there."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vmbackup.errors import UsageError, VmbackupError

if TYPE_CHECKING:
    from vmbackup.config.models import Config
    from vmbackup.engine.restore.flat import RestoreOptions
    from vmbackup.engine.restore.image_places import ImagePlace
    from vmbackup.hypervisor import Host
    from vmbackup.hypervisor.define.define import Definition
    from vmbackup.repository.points import Point
    from vmbackup.repository.repository import Repository

# hypervisor.wishes.OPTIONAL; named here too, for help must not load the hypervisor.
_OPTIONAL = ("host-devices", "launch-security", "tpm", "filters", "shares", "kernel", "disks")


def define_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options; the command gets them as keywords, for `DefineRequest.of`."""
    for option in reversed((
        click.option("--define", is_flag=True, help="Define the guest on this host, put right for it."),
        click.option("--name", metavar="NEW", help="With --define: a copy, with UUID and MACs of its own."),
        click.option("--keep-mac", is_flag=True, help="With --define --name: the copy keeps the MAC addresses."),
        click.option("--keep-uuid", is_flag=True, help="With --define --name: the copy keeps the UUID."),
        click.option(
            "--network",
            "networks",
            metavar="FROM=TO",
            multiple=True,
            help="With --define: what was on FROM goes to network or bridge TO, or none; again for more.",
        ),
        click.option(
            "--without",
            multiple=True,
            type=click.Choice(_OPTIONAL),
            help="With --define: do without what this host lacks of that kind; again for more.",
        ),
        click.option("--start", is_flag=True, help="With --define: start the guest."),
    )):
        command = option(command)
    return command


@dataclass(frozen=True)
class DefinedGuest:
    """What came of it. `notes`: what was changed for this host."""

    name: str
    uuid: str
    started: bool
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {"name": self.name, "uuid": self.uuid, "started": self.started, "notes": list(self.notes)}

    def lines(self) -> list[str]:
        """For people."""
        after = "and runs" if self.started else f"and is off: virsh start {self.name}"
        return [f"domain {self.name} is defined (UUID {self.uuid}) {after}", *(f"  {note}" for note in self.notes)]


@dataclass(frozen=True)
class PlannedGuest:
    """A guest that can be defined: what it will be called, and what does it once its disks are there."""

    definition: "Definition"
    carry_out: Callable[[], DefinedGuest]

    def document(self) -> dict[str, Any]:
        """For JSON."""
        made = self.definition.rebuilt
        return {"name": made.name, "notes": list(made.notes), "warnings": list(self.definition.warnings)}

    def lines(self) -> list[str]:
        """For people."""
        made, warnings = self.definition.rebuilt, self.definition.warnings
        told = [*(f"  {note}" for note in made.notes), *(f"  warning: {warning}" for warning in warnings)]
        return [f"domain {made.name} would be defined", *told]


@dataclass(frozen=True)
class DefineRequest:
    """The options of one run."""

    name: str | None
    keep_mac: bool
    keep_uuid: bool
    networks: Mapping[str, str]
    without: tuple[str, ...]
    start: bool

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "DefineRequest | None":
        """None where the guest is not to be defined. Raises UsageError."""
        given = {**options}
        if not given.pop("define"):
            named = next((name for name, value in given.items() if value), None)
            if named is not None:
                option = {"networks": "--network"}.get(named, f"--{named.replace('_', '-')}")
                raise UsageError(f"{option} goes with --define", "add --define")
            return None
        return cls(**{**given, "networks": dict(map(_pair, given["networks"]))})

    def plan(
        self,
        host: "Host",
        documents: Mapping[str, bytes],
        images: Mapping[str, "ImagePlace"],
        boot_files: Mapping[str, Path],
    ) -> "Definition":
        """The guest as it will be; `images`, by target, and `boot_files`, by path, need not be there yet.

        Raises VmbackupError.
        """
        from vmbackup.hypervisor.define.define import DefineOptions
        from vmbackup.hypervisor.rebuild.wishes import NewDisk

        disks = {
            target: NewDisk(image.path, image.format, block=image.device, encrypted=image.encrypted)
            for target, image in images.items()
        }
        without: Any = frozenset(self.without)
        options = DefineOptions(
            self.name, self.keep_uuid, self.keep_mac, self.networks, without, boot_files=boot_files
        )
        return host.plan_definition(documents, disks, options)

    def carry_out(self, host: "Host", definition: "Definition") -> DefinedGuest:
        """Defines and, if wished, starts it. Raises VmbackupError, which says what is restored all the same."""
        try:
            host.define(definition)
        except VmbackupError as error:
            error.message = f"the disks are restored, but the guest could not be defined: {error.message}"
            error.args = (error.message,)
            raise
        made = definition.rebuilt
        if self.start:
            host.start(made.name)
        return DefinedGuest(made.name, made.uuid, self.start, made.notes, definition.warnings)


@contextlib.contextmanager
def planned_guest(
    request: DefineRequest | None,
    config: "Config",
    repository: "Repository",
    point: "Point",
    options: "RestoreOptions",
) -> Iterator[PlannedGuest | None]:
    """Looks, before a byte is restored, whether the guest can be defined.

    None where it is not to be: then libvirt is not asked.
    """
    if request is None:
        yield None
        return
    from vmbackup.cli import access
    from vmbackup.engine.restore.boot_files import FOLDER, BootFiles
    from vmbackup.engine.restore.image_places import image_places

    places = image_places(point, options)
    documents = repository.documents(point)
    makes_new = any(place.new for place in places.values())
    boot_folder = options.output / FOLDER if options.output is not None and makes_new else None
    boot_files, notes = BootFiles(repository, point).places(boot_folder)
    with access.opened_host(config) as host:
        definition = request.plan(host, documents, places, boot_files)
        definition = replace(definition, warnings=(*definition.warnings, *notes))
        yield PlannedGuest(definition, lambda: request.carry_out(host, definition))


def _pair(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not equals or not old or not new:
        raise UsageError(f"--network {text} maps nothing", "write it as --network FROM=TO")
    return old, new
