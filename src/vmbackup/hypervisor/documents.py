"""What of a guest lies beside its disks, and a restore point keeps: XML, UEFI variables, the TPM's state."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from vmbackup.hypervisor.boot_files import boot_files
from vmbackup.hypervisor.remote.remote import is_remote
from vmbackup.hypervisor.shown import without
from vmbackup.hypervisor.source import BootFile
from vmbackup.hypervisor.xmltree import Element, parse

DOMAIN_XML = "domain.xml"
UEFI_VARIABLES = "nvram.fd"
# What libvirt knows of a guest beside its XML: {"autostart": true}; left out where there is nothing to say.
GUEST_SETTINGS = "guest.json"
# The file of swtpm's folder that outlives the TPM's power, by the TPM's version; the others hold what a start makes.
TPM_STATES = {"2.0": "tpm2-00.permall", "1.2": "tpm-00.permall"}
TPM_FOLDERS = {"2.0": "tpm2", "1.2": "tpm1.2"}
_XML_SECURE, _XML_INACTIVE = 1, 2
# Bytes of a file: the variables of the largest firmware (AArch64) are 64 MiB, nearly all zeros, which are not stored.
_MOST, _MOST_STORED = 64 << 20, 8 << 20
_PIECE = 1 << 20


@dataclass
class GuestDocuments:
    """The documents by name, and a sentence on each that could not be read.

    `boot_files` of this host are too large for one, and are read like disks. `unread`: of the notes those on UEFI
    variables and a TPM's state, by path.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    boot_files: list[BootFile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unread: dict[str, str] = field(default_factory=dict)


def tpm_root(domain_folders: str) -> str:
    """Where libvirt keeps the states of emulated TPMs, given its folder for domains: beside it."""
    return os.path.join(os.path.dirname(os.path.abspath(domain_folders)), "swtpm")


def read_documents(domain: Any, domain_folders: str) -> GuestDocuments:
    """All of a domain (virDomain). What cannot be read is noted: the disks are worth a restore point without it."""
    found = GuestDocuments()
    # As it would start the next time, with its secrets; a transient domain has only its live one.
    flags = _XML_SECURE | (_XML_INACTIVE if domain.isPersistent() else 0)
    xml = without(domain.XMLDesc(flags))
    found.files[DOMAIN_XML] = xml.encode()
    if domain.isPersistent() and domain.autostart():
        found.files[GUEST_SETTINGS] = json.dumps({"autostart": True}).encode()
    found.boot_files = boot_files(parse(xml))
    live, far = parse(domain.XMLDesc(_XML_SECURE)), is_remote(domain.connect())
    if far and found.boot_files:
        paths = ", ".join(file.path for file in found.boot_files)
        found.notes.append(
            f"{paths}: the hypervisor's and not read from here; a restored guest starts only where they are"
        )
        found.boot_files = []
    for name, path, loss in [*_variables(live), *_tpm_states(live, tpm_root(domain_folders))]:
        if far:
            told = f"{path} is the hypervisor's and not read from here: a restored guest starts {loss}"
        else:
            try:
                found.files[name] = _read(path)
                continue
            except (OSError, ValueError) as error:
                why = getattr(error, "strerror", None) or error
                told = f"{path} could not be read ({why}): a restored guest starts {loss}"
        found.notes.append(told)
        found.unread[path] = told
    return found


def starts_with_host(documents: Mapping[str, bytes]) -> bool:
    """Whether the guest of these documents was started with its host."""
    with contextlib.suppress(ValueError):
        settings = json.loads(documents.get(GUEST_SETTINGS, b"{}"))
        return isinstance(settings, dict) and settings.get("autostart") is True
    return False


def _variables(live: Element) -> Iterator[tuple[str, str, str]]:
    nvram = live.find("./os/nvram")
    if nvram is None:
        return
    source = nvram.find("source")
    path = (source.get("file") or source.get("dev") or "") if source is not None else (nvram.text or "").strip()
    yield UEFI_VARIABLES, path or "the UEFI variables on the network", "with its firmware's default variables"


def _tpm_states(live: Element, root: str) -> Iterator[tuple[str, str, str]]:
    for backend in live.findall("./devices/tpm/backend[@type='emulator']"):
        version = backend.get("version", "2.0")
        if version not in TPM_STATES:
            continue
        name, source = TPM_STATES[version], backend.find("source")
        folder = os.path.join(root, live.findtext("uuid") or "", TPM_FOLDERS[version])
        path = os.path.join(folder, name)
        if source is not None and source.get("path"):
            path = source.get("path", "")
            path = path if source.get("type") == "file" else os.path.join(path, name)
        yield name, path, "with an empty TPM"


def _read(path: str) -> bytes:
    pieces, left = [], _MOST
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            left -= len(piece)
            if left < 0:
                raise ValueError(f"it has more than {_MOST >> 20} MiB")
            pieces.append(piece)
    data = b"".join(pieces)
    if len(data.rstrip(b"\0")) > _MOST_STORED:
        raise ValueError(f"it holds more than {_MOST_STORED >> 20} MiB")
    return data
