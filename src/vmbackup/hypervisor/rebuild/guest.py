"""A guest's XML put right for this host: pure, so that every case of it can be tested as text."""

import os
from collections.abc import Callable

from vmbackup.hypervisor.define.capabilities import Capabilities
from vmbackup.hypervisor.rebuild import devices, disks, firmware, machine, networks, placement, screens
from vmbackup.hypervisor.rebuild.draft import Draft
from vmbackup.hypervisor.rebuild.wishes import Kind, Lack, NbdSource, NewDisk, Rebuilt, Wishes
from vmbackup.hypervisor.xmltree import parse, render

__all__ = ["Kind", "Lack", "NbdSource", "NewDisk", "Rebuilt", "Wishes", "rebuild"]


def rebuild(xml: str, wishes: Wishes, host: Capabilities, *, chance: Callable[[int], bytes] = os.urandom) -> Rebuilt:
    """The guest of `xml` (libvirt's, with secrets) as this host can run it.

    What the host lacks is taken out of the XML and told in `lacking`, every other change in `notes`. `chance` makes
    new UUIDs and MAC addresses. Raises ValueError where `xml` is not a domain, UsageError where a wish names a
    network that the guest or the host does not have.
    """
    root = parse(xml)
    if root.tag != "domain":
        raise ValueError(f"<{root.tag}> is not a domain")
    draft = Draft(root, wishes, host, chance)
    draft.identify()
    machine.fit(draft)
    firmware.fit(draft)
    placement.fit(draft)
    disks.fit(draft)
    networks.fit(draft)
    screens.fit(draft)
    devices.fit(draft)
    return Rebuilt(
        xml=render(root),
        name=draft.name,
        uuid=draft.uuid,
        notes=tuple(draft.notes),
        lacking=tuple(draft.lacking),
        warnings=tuple(draft.warnings),
        nvram=draft.nvram,
        tpm_version=draft.tpm_version,
    )
