"""The <disk> elements of a domain's definition."""

from vmbackup.hypervisor.xmltree import Element, element


def target_of(disk: Element) -> str:
    """The name that the guest knows it by; empty where it has none."""
    found = disk.find("target")
    return found.get("dev", "") if found is not None else ""


def disk_of(root: Element, target: str) -> Element | None:
    """The disk of that name."""
    return next((disk for disk in root.findall("./devices/disk") if target_of(disk) == target), None)


def driver_of(disk: Element) -> Element:
    """Its <driver>, made where it has none."""
    driver = disk.find("driver")
    if driver is None:
        driver = element("driver", {"name": "qemu"})
        disk.insert(0, driver)
    return driver
