"""Where a run puts things on this host."""

from dataclasses import dataclass

DOMAIN_FOLDERS = "/var/lib/libvirt/qemu"


@dataclass(frozen=True)
class Places:
    """Where a run puts things on this host, and how many of our checkpoints a domain keeps."""

    scratch_dir: str
    state_dir: str
    domain_folders: str = DOMAIN_FOLDERS
    keep: int = 1
