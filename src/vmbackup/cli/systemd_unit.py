"""What systemd says of the service's unit, by `systemctl show`."""

import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

NAME = "vmbackup.service"
DROP_IN = "/etc/systemd/system/vmbackup.service.d/local.conf"
_BOOTED = "/run/systemd/system"  # is there where systemd runs the machine: sd_booted(3)
_ANSWER_SECONDS = 20.0
_PROPERTIES = (
    "LoadState", "UnitFileState", "ActiveState", "Result", "NeedDaemonReload", "ProtectSystem", "ReadWritePaths",
    "StateDirectory", "CacheDirectory", "RuntimeDirectory", "LoadCredential", "LoadCredentialEncrypted",
    "SetCredential", "SetCredentialEncrypted", "SupplementaryGroups", "CapabilityBoundingSet",
)  # fmt: skip
_FOLDERS = {"StateDirectory": "/var/lib", "CacheDirectory": "/var/cache", "RuntimeDirectory": "/run"}


@dataclass(frozen=True)
class Unit:
    """The unit as systemd has it loaded. `writable` is None where the file system is not closed to it."""

    installed: bool
    enabled: bool
    active: str
    result: str
    outdated: bool
    writable: tuple[Path, ...] | None
    credentials: frozenset[str]
    gives_group: Callable[[str], bool]

    def may_write(self, path: Path) -> bool:
        """Whether the service may write below `path`, as far as systemd decides it."""
        return self.writable is None or any(path.resolve().is_relative_to(folder) for folder in self.writable)


def read_unit() -> Unit | None:
    """The service's unit; None where systemd does not run this machine, or does not answer."""
    if not os.path.isdir(_BOOTED):
        return None
    command = ["systemctl", "show", "--no-pager", f"--property={','.join(_PROPERTIES)}", NAME]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return parse(done.stdout)


def parse(shown: str) -> Unit:
    """Out of the lines NAME=value of `systemctl show`; a name may stand there several times."""
    values: dict[str, list[str]] = {}
    for line in shown.splitlines():
        name, _, value = line.partition("=")
        values.setdefault(name, []).append(value)
    one = {name: " ".join(several) for name, several in values.items()}
    groups = one.get("SupplementaryGroups", "").split()
    may_chown = "cap_chown" in one.get("CapabilityBoundingSet", "cap_chown").split()
    return Unit(
        installed=one.get("LoadState") == "loaded",
        enabled=one.get("UnitFileState", "").startswith("enabled"),
        active=one.get("ActiveState", "unknown"),
        result=one.get("Result", "unknown"),
        outdated=one.get("NeedDaemonReload") == "yes",
        writable=_writable(one) if one.get("ProtectSystem") == "strict" else None,
        credentials=frozenset(
            entry.partition(":")[0] for name, value in one.items() if "Credential" in name for entry in value.split()
        ),
        gives_group=lambda group: may_chown or group in groups,
    )


def _writable(values: Mapping[str, str]) -> tuple[Path, ...]:
    paths = [path.lstrip("-+") for path in values.get("ReadWritePaths", "").split()]
    for name, parent in _FOLDERS.items():
        paths += [f"{parent}/{folder.partition(':')[0]}" for folder in values.get(name, "").split()]
    return tuple(Path(path).resolve() for path in paths)
