"""What the domain's own XML says of its backups: when, where to, and as which restore point.

For those who look at a guest with other tools (`virsh metadata DOMAIN urn:vmbackup:domain:1`). Nothing here is read for
a backup or a restore, and a restore point's copy of the XML does not have it: of a restored guest it would be a lie.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from vmbackup.hypervisor import _libvirt as lv
from vmbackup.hypervisor.failures import code_of
from vmbackup.hypervisor.tidy import cleanup
from vmbackup.hypervisor.xmltree import Element, element, parse, render

NAMESPACE = "urn:vmbackup:domain:1"
_KEY = "vmbackup"  # the prefix of its elements
_ELEMENT = 2  # VIR_DOMAIN_METADATA_ELEMENT
_LIVE, _CONFIG = 1, 2
_NO_METADATA = 80  # VIR_ERR_NO_DOMAIN_METADATA
_OURS = re.compile(rf'\s*<{_KEY}:backups xmlns:{_KEY}="{NAMESPACE}"(?:/>|>.*?</{_KEY}:backups>)', re.DOTALL)
_EMPTY = re.compile(r"\s*<metadata>\s*</metadata>|\s*<metadata/>")


@dataclass(frozen=True)
class Shown:
    """The newest backup of a guest into one repository. `place` is its address, without any secret."""

    repository: str
    place: str
    point: str
    time: datetime


def show(domain: Any, backup: Shown) -> bool:
    """Writes it into a virDomain's XML, beside those of other repositories. False while another job holds the domain.

    Raises libvirtError.
    """
    if cleanup.job_type(domain) != 0:
        return False  # the call would wait for half a minute
    others = [each for each in _shown(domain) if each.get("repository") != backup.repository]
    told = {"repository": backup.repository, "place": backup.place, "point": backup.point}
    told["time"] = backup.time.isoformat(timespec="seconds")
    _write(domain, render(element("backups", None, None, *others, element("backup", told))))
    return True


def hide(domain: Any) -> bool:
    """Takes all of it off. True where there was any. Raises libvirtError."""
    if not _shown(domain):
        return False
    _write(domain, None)
    return True


def without(xml: str) -> str:
    """A domain's XML without what is shown in it; as it is, byte for byte, where there is nothing."""
    bare = _OURS.sub("", xml)
    return xml if bare == xml else _EMPTY.sub("", bare, count=1)


def _shown(domain: Any) -> list[Element]:
    """The backups that it shows now, without their namespace."""
    try:
        text = domain.metadata(_ELEMENT, NAMESPACE, 0)
    except lv.binding().libvirtError as error:
        if code_of(error) == _NO_METADATA:
            return []
        raise
    return [element("backup", dict(each.attrib)) for each in parse(text) if each.tag.rpartition("}")[2] == "backup"]


def _write(domain: Any, text: str | None) -> None:
    live = _LIVE if domain.isActive() else 0
    flags = live | (_CONFIG if domain.isPersistent() else 0)
    domain.setMetadata(_ELEMENT, text, _KEY, NAMESPACE, flags)
