"""What this host calls itself in a repository."""

import hashlib
import socket
from pathlib import Path

_MACHINE_ID = Path("/etc/machine-id")


def host_identity() -> str:
    """The host's name, and 8 digits made from its machine id so that two hosts of one name differ."""
    try:
        machine = _MACHINE_ID.read_bytes().strip()
    except OSError:
        machine = b""
    tag = hashlib.sha256(b"vmbackup host\0" + machine).hexdigest()[:8] if machine else ""
    return f"{socket.gethostname()}/{tag}" if tag else socket.gethostname()
