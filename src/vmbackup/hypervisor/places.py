"""Where a run puts things on this host."""

import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from vmbackup.hypervisor.remote.remote import Reach

DOMAIN_FOLDERS = "/var/lib/libvirt/qemu"


def is_session(uri: str) -> bool:
    """Whether it is a user's own libvirt."""
    return urlsplit(uri).path.startswith("/session")


def domain_folders_of(uri: str) -> str:
    """Where a libvirt keeps the folders of its running domains: the system's, or a user's own."""
    if not is_session(uri):
        return DOMAIN_FOLDERS
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return os.path.join(config, "libvirt/qemu/lib")


@dataclass(frozen=True)
class Places:
    """Where a run puts things on this host, and how many of our checkpoints a domain keeps."""

    scratch_dir: str
    state_dir: str
    domain_folders: str = DOMAIN_FOLDERS
    keep: int = 1
    reach: Reach | None = None  # of another machine's guests; None: this one's
