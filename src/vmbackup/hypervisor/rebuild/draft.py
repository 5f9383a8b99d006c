"""A domain's XML in the making: who the guest is, and what is said of the changes."""

import re
import uuid as uuids
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vmbackup.hypervisor.define.capabilities import Capabilities
from vmbackup.hypervisor.rebuild.wishes import Kind, Lack, Wishes
from vmbackup.hypervisor.xmltree import Element, element

# So that QEMU's own arguments keep the prefix under which people know them.
ET.register_namespace("qemu", "http://libvirt.org/schemas/domain/qemu/1.0")
ET.register_namespace("libosinfo", "http://libosinfo.org/xmlns/libvirt/domain/1.0")
_QEMU_MAC = b"\x52\x54\x00"  # locally administered; what libvirt gives guests of QEMU


@dataclass
class Draft:
    """`root` is changed in place. `original`: the name the guest had."""

    root: Element
    wishes: Wishes
    host: Capabilities
    chance: Callable[[int], bytes]
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    lacking: list[Lack] = field(default_factory=list)
    name: str = ""
    original: str = ""
    uuid: str = ""
    nvram: Path | None = None
    tpm_version: str | None = None

    @property
    def clone(self) -> bool:
        """Another guest than the original, which may run beside it."""
        return not self.wishes.keep_uuid

    @property
    def devices(self) -> Element:
        """The guest's devices."""
        found = self.root.find("devices")
        return found if found is not None else add(self.root, "devices")

    def note(self, sentence: str) -> None:
        """Says what was changed, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def warn(self, sentence: str) -> None:
        """Says what is lost or worse, once."""
        if sentence not in self.warnings:
            self.warnings.append(sentence)

    def lack(self, kind: Kind, message: str, hint: str = "") -> None:
        """Says what the host lacks, once."""
        found = Lack(kind, message, hint)
        if found not in self.lacking:
            self.lacking.append(found)

    def allows(self, enum: str, value: str) -> bool:
        """Whether the host has that kind of device; True where it does not tell."""
        known = self.host.enums.get(enum)
        return known is None or value in known

    def new_uuid(self) -> str:
        """A random one."""
        return str(uuids.UUID(bytes=self.chance(16), version=4))

    def new_mac(self) -> str:
        """A random one of QEMU's own range."""
        return (_QEMU_MAC + self.chance(3)).hex(":")

    def identify(self) -> None:
        """Name, UUID and what repeats them; what belongs to one run of the guest goes."""
        root = self.root
        self.original = (root.findtext("name") or "").strip()
        self.name = self.wishes.name or self.original
        set_text(root, "name", self.name)
        old = (root.findtext("uuid") or "").strip()
        self.uuid = old if self.wishes.keep_uuid and old else self.new_uuid()
        set_text(root, "uuid", self.uuid)
        for entry in root.findall("./sysinfo/system/entry[@name='uuid']"):
            entry.text = self.uuid
        root.attrib.pop("id", None)
        self._new_generation()

    def _new_generation(self) -> None:
        """A generation id tells the guest that its past was taken back; keeping it would break its directory."""
        found = self.root.find("genid")
        if found is not None:
            found.text = self.new_uuid()
            self.note("the guest's generation id is new: it tells Windows that its past was taken back")


def add(parent: Element, tag: str, attributes: dict[str, str] | None = None, text: str | None = None) -> Element:
    """A new last child."""
    made = element(tag, attributes, text)
    parent.append(made)
    return made


def set_text(parent: Element, tag: str, text: str) -> None:
    """The text of a child, made if it is not there."""
    found = parent.find(tag)
    if found is None:
        found = element(tag)
        parent.insert(0, found)
    found.text = text


def drop(parent: Element, *tags: str) -> bool:
    """Removes all children of these tags. True if there were any."""
    found = [child for child in parent if child.tag in tags]
    for child in found:
        parent.remove(child)
    return bool(found)


def drop_in(root: Element, path: str, unwanted: Callable[[Element], bool]) -> list[Element]:
    """Removes what `path` ("./devices/hostdev") finds and `unwanted` says; gives what was removed."""
    above, _, tag = path.rpartition("/")
    gone = []
    for parent in root.findall(above):
        for child in parent.findall(tag):
            if unwanted(child):
                parent.remove(child)
                gone.append(child)
    return gone


def numbers(ranges: str) -> set[int]:
    """The members of "0-3,^2,8". What is malformed is left out."""
    found: set[int] = set()
    for part in ranges.replace(" ", "").split(","):
        match = re.fullmatch(r"(\^?)(\d{1,6})(?:-(\d{1,6}))?", part)
        if match:
            first, last = int(match[2]), int(match[3] or match[2])
            members = set(range(first, last + 1))
            found = found - members if match[1] else found | members
    return found
