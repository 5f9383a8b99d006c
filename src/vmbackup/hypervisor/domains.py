"""Domains: listed, found by name or UUID, named well when there is none."""

import difflib
import re
from typing import Any

from vmbackup.errors import HypervisorError, NotFoundError
from vmbackup.hypervisor import _libvirt as lv
from vmbackup.hypervisor.connection import Connection
from vmbackup.hypervisor.names import is_throwaway
from vmbackup.hypervisor.source import DomainInfo

# virDomainState, by value.
_STATES = {
    0: "no state", 1: "running", 2: "blocked", 3: "paused", 4: "shutting down",
    5: "shut off", 6: "crashed", 7: "suspended",
}  # fmt: skip
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
PAUSED_BY_IO_ERROR = (3, 5)  # VIR_DOMAIN_PAUSED, VIR_DOMAIN_PAUSED_IOERROR
PAUSED_BY_USER = (3, 1)  # VIR_DOMAIN_PAUSED, VIR_DOMAIN_PAUSED_USER
PAUSED_BY_ITSELF = (3, 0)  # VIR_DOMAIN_PAUSED, and no reason: QEMU stopped it, and libvirt was not told why
RUNNING, PAUSED, SLEEPING = 1, 3, 7  # VIR_DOMAIN_PMSUSPENDED: to its memory, by itself
ASLEEP = (PAUSED, SLEEPING)  # it goes on as it was
# VIR_DOMAIN_SHUTOFF, VIR_DOMAIN_SHUTOFF_MIGRATED: off here, and at work on another host.
MIGRATED_AWAY = "migrated away"


class DomainNotFound(NotFoundError):
    """libvirt knows no such domain. `near` are names like it."""

    def __init__(self, wanted: str, near: list[str]) -> None:
        hint = "did you mean " + " or ".join(near) + "?" if near else "'virsh list --all' names them"
        super().__init__(f"there is no domain {wanted!r}", hint)
        self.near = near


def describe(domain: Any) -> DomainInfo:
    """A virDomain's facts."""
    number = domain.ID()
    told = domain.state()
    state = MIGRATED_AWAY if list(told[:2]) == [5, 4] else _STATES.get(told[0], "unknown")
    return DomainInfo(
        name=domain.name(),
        uuid=domain.UUIDString(),
        id=number if number >= 0 else None,
        state=state,
        persistent=bool(domain.isPersistent()),
    )


def list_domains(connection: Connection) -> list[DomainInfo]:
    """All domains of the host, by name. One that goes away meanwhile is left out, and so are those of drills."""

    def every(raw: Any) -> list[DomainInfo]:
        found = []
        for domain in raw.listAllDomains(0):
            try:
                info = describe(domain)
                if not is_throwaway(info.name, persistent=info.persistent):
                    found.append(info)
            except lv.binding().libvirtError as error:
                if error.get_error_code() != lv.NO_DOMAIN:
                    raise
        return sorted(found, key=lambda info: info.name)

    return connection.call("list the domains", every)


def find_domain(connection: Connection, name_or_uuid: str) -> DomainInfo:
    """The domain of that name, or of that UUID. A name goes first. Raises DomainNotFound."""
    wanted = name_or_uuid.lower()
    every = list_domains(connection)
    for info in every:
        if info.name == name_or_uuid:
            return info
    if _UUID.fullmatch(wanted):
        for info in every:
            if info.uuid == wanted:
                return info
    names = {info.name.lower(): info.name for info in every}
    near = difflib.get_close_matches(wanted, list(names), n=3, cutoff=0.6)
    raise DomainNotFound(name_or_uuid, [names[name] for name in near])


def handle(raw: Any, info: DomainInfo) -> Any:
    """The virDomain, on that connection."""
    return raw.lookupByUUIDString(info.uuid)


def require_running(info: DomainInfo) -> None:
    """Raises HypervisorError for a domain that is off: only QEMU at work can fix a point in time for us."""
    if not info.active:
        raise HypervisorError(
            f"domain {info.name} is not running ({info.state})", f"start it with 'virsh start {info.name}'"
        )
