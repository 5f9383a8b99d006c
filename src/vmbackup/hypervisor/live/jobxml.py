"""The XML that begins a backup job, and what is read back from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vmbackup.hypervisor.names import PREFIX
from vmbackup.hypervisor.remote.remote import address_of, is_place, place_of
from vmbackup.hypervisor.source import Mode
from vmbackup.hypervisor.xmltree import Element, element, parse, render

# The name the bitmap has in the export, the same for every disk: qemu:dirty-bitmap:vmbackup.
EXPORT_BITMAP = "vmbackup"


@dataclass(frozen=True)
class JobDisk:
    """A disk of the job: how it is read, where its scratch file will be."""

    target: str
    mode: Mode
    scratch: str


def _server(socket: str) -> Element:
    if not is_place(socket):
        return element("server", {"transport": "unix", "socket": socket})
    address = address_of(socket)
    return element("server", {"transport": "tcp", "tls": "yes", "name": address.host, "port": str(address.port)})


def backup_xml(socket: str, disks: Sequence[JobDisk], left_out: Sequence[str], parent: str | None) -> str:
    """The <domainbackup>. Every disk of the domain is listed: an unlisted one would be backed up by default.

    Only incremental disks name the parent and the bitmap; mixing them with whole ones is one point in time.
    """
    entries = []
    for disk in disks:
        attributes = {"name": disk.target, "backup": "yes", "type": "file", "exportname": disk.target}
        if disk.mode == "incremental":
            attributes |= {"backupmode": "incremental", "incremental": parent or "", "exportbitmap": EXPORT_BITMAP}
        else:
            attributes |= {"backupmode": "full"}
        entries.append(
            element(
                "disk", attributes, None,
                element("driver", {"type": "qcow2"}), element("scratch", {"file": disk.scratch}),
            )
        )  # fmt: skip
    entries += [element("disk", {"name": target, "backup": "no"}) for target in left_out]
    disks_element = element("disks", None, None, *entries)
    return render(element("domainbackup", {"mode": "pull"}, None, _server(socket), disks_element))


def checkpoint_xml(name: str, tracked: Sequence[str], others: Sequence[str]) -> str:
    """The <domaincheckpoint> of the run; `others` (raw, left out) get no bitmap."""
    disks = [element("disk", {"name": target, "checkpoint": "bitmap"}) for target in tracked]
    disks += [element("disk", {"name": target, "checkpoint": "no"}) for target in others]
    return render(
        element("domaincheckpoint", None, None, element("name", None, name), element("disks", None, None, *disks))
    )


def job_socket(xml: str) -> str:
    """The socket of a running job, as backupGetXMLDesc tells; "" for a job of another kind.

    For one that listens on the network the name of its server (remote.py): the scratch files tell whose it is.
    """
    root = parse(xml)
    server = root.find("server")
    if server is None:
        return ""
    scratch = root.find("./disks/disk/scratch")
    if server.get("transport") != "tcp" or scratch is None:
        return server.get("socket", "")
    file = scratch.get("file", "").rpartition("/")[2]
    tag = file.removeprefix(PREFIX).partition(".")[0] if file.startswith(PREFIX) else ""
    return place_of(server.get("name", ""), int(server.get("port", "0")), tag) if tag else ""


def scratch_devices(xml: str) -> Mapping[str, str]:
    """Target -> name of the scratch's node (vda[3]), for thresholds and events."""
    found = {}
    for disk in parse(xml).findall("./disks/disk"):
        name, index = disk.get("name", ""), disk.get("index")
        if disk.get("backup") == "yes" and index:
            found[name] = f"{name}[{index}]"
    return found
