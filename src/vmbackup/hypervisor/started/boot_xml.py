"""The XML around a guest that hangs on a served restore point: what its disks lie on, and the way from there."""

from collections.abc import Collection, Mapping, Sequence

from vmbackup.hypervisor.boot_files import KINDS
from vmbackup.hypervisor.disk_element import driver_of
from vmbackup.hypervisor.xmltree import Element, element, parse, render

# Seconds that a read waits in QEMU for a server that is gone, where libvirt can ask for it; then the guest is paused.
# QEMU answers no monitor command that must wait for the disk meanwhile, so no more than that.
RECONNECT_SECONDS = 20
# A guest whose disk cannot be read or written is paused, and never told of an error: the read is made again when it
# goes on.
POLICIES = {"error_policy": "stop", "rerror_policy": "stop"}


def policies(xml: str) -> dict[str, dict[str, str]]:
    """What the disks' drivers say of errors, by target: `stand_alone` gives it back."""
    return {target: _given(disk) for target, disk in _disks(parse(xml))}


def stand_alone(xml: str, given: Mapping[str, Mapping[str, str]], moved: Mapping[str, str]) -> str:
    """The definition of a guest none of whose disks (the keys of `given`) hangs on anything any more.

    `moved`: files that it is started from, old path -> new.
    """
    root = parse(xml)
    for tag in KINDS:
        for each in root.findall(f"./os/{tag}"):
            each.text = moved.get((each.text or "").strip(), each.text)
    for target, disk in _disks(root):
        if target in given:
            _drop(disk, "backingStore")
            driver = driver_of(disk)
            for name in POLICIES:
                driver.attrib.pop(name, None)
            driver.attrib.update(given[target])
    return render(root)


def look_again(xml: str, targets: Collection[str]) -> str:
    """The definition of a guest of which it is not known what images of these disks hang on."""
    root = parse(xml)
    for target, disk in _disks(root):
        if target in targets:
            _drop(disk, "backingStore")
    return render(root)


def sources(xml: str) -> dict[str, tuple[str, bool]]:
    """The file of each disk by target, and whether it has a backing image."""
    found = {}
    for target, disk in _disks(parse(xml)):
        source = disk.find("source")
        path = source.get("file") or source.get("dev") or "" if source is not None else ""
        found[target] = (path, disk.find("./backingStore/source") is not None)
    return found


def switch(disks: Mapping[str, str], others: Sequence[str]) -> str:
    """The snapshot XML that puts these new images (target -> path), which exist, on top; `others` are left alone."""
    entries = [
        element(
            "disk",
            {"name": target, "snapshot": "external", "type": "file"},
            None,
            element("driver", {"type": "qcow2"}),
            element("source", {"file": path}),
        )
        for target, path in disks.items()
    ]
    entries += [element("disk", {"name": target, "snapshot": "no"}) for target in others]
    return render(element("domainsnapshot", None, None, element("disks", None, None, *entries)))


def _disks(root: Element) -> list[tuple[str, Element]]:
    found = []
    for disk in root.findall("./devices/disk"):
        target = disk.find("target")
        if target is not None:
            found.append((target.get("dev", ""), disk))
    return found


def _given(disk: Element) -> dict[str, str]:
    driver = disk.find("driver")
    return {} if driver is None else {name: driver.attrib[name] for name in POLICIES if name in driver.attrib}


def _drop(disk: Element, tag: str) -> None:
    for child in disk.findall(tag):
        disk.remove(child)
