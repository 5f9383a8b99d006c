"""A domain that was booted from a restore point: started, paused, moved to local disks, taken away."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from vmbackup.errors import HypervisorError
from vmbackup.hypervisor import _libvirt as lv
from vmbackup.hypervisor.connection import Connection
from vmbackup.hypervisor.domains import PAUSED_BY_IO_ERROR
from vmbackup.hypervisor.failures import code_of
from vmbackup.hypervisor.started import boot_xml

State = Literal["running", "paused", "error", "off", "gone"]
_RUNNING, _BLOCKED, _PAUSED, _SHUTDOWN = 1, 2, 3, 4  # virDomainState
_NO_SPACE = 2  # VIR_DOMAIN_DISK_ERROR_NO_SPACE


class PullProgress(NamedTuple):
    """Bytes of a disk that were looked at, of how many."""

    done: int
    total: int


class BootedDomain:
    """The domain of that UUID; each call asks libvirt anew. Raises HypervisorError and its kinds."""

    def __init__(self, connection: Connection, uuid: str, name: str) -> None:
        self._connection, self._uuid, self.name = connection, uuid, name

    def _call(self, doing: str, function: Callable[[Any], Any]) -> Any:
        return self._connection.call(
            f"{doing} {self.name}", lambda raw: function(raw.lookupByUUIDString(self._uuid)), self.name
        )

    def state(self) -> State:
        """`error`: it was paused because a disk could not be read or written."""
        libvirt = lv.binding()

        def look(raw: Any) -> State:
            try:
                state, reason = raw.lookupByUUIDString(self._uuid).state()
            except libvirt.libvirtError as error:
                if code_of(error) == lv.NO_DOMAIN:
                    return "gone"
                raise
            if (state, reason) == PAUSED_BY_IO_ERROR:
                return "error"
            if state == _PAUSED:
                return "paused"
            return "running" if state in (_RUNNING, _BLOCKED, _SHUTDOWN) else "off"

        found: State = self._connection.call(f"look at {self.name}", look, self.name)
        return found

    def start(self, *, paused: bool = False) -> None:
        """Starts it."""
        flags = lv.binding().VIR_DOMAIN_START_PAUSED if paused else 0
        try:
            self._call("start", lambda domain: domain.createWithFlags(flags))
        except HypervisorError as error:
            if "Permission denied" not in error.message or ".sock" not in error.message:
                raise
            hint = "AppArmor or SELinux keeps QEMU off the socket: docs/operations.md, 'Booting from the repository'"
            raise HypervisorError(error.message, hint) from error

    def resume(self) -> None:
        """Lets it go on; what it could not read it reads again."""
        self._call("resume", lambda domain: domain.resume())

    def lacks_space(self) -> bool:
        """Whether it was paused because the file system of an image is full."""
        return _NO_SPACE in self._call("look at the disks of", lambda domain: domain.diskErrors(0)).values()

    def flush(self) -> None:
        """Brings all that QEMU holds of the images into their files: it does so when it is told to pause the guest."""
        state = self.state()
        if state in ("off", "gone"):
            return

        def pause(domain: Any) -> None:
            domain.suspend()
            domain.resume()

        def pause_again(domain: Any) -> None:
            import libvirt_qemu

            libvirt_qemu.qemuMonitorCommand(domain, '{"execute": "stop"}', 0)  # libvirt would not pass it on

        self._call("flush the disks of", pause if state == "running" else pause_again)

    def stop(self) -> None:
        """Pulls the plug: QEMU ends in good order, the guest does not."""

        def destroy(domain: Any) -> None:
            if domain.isActive():
                domain.destroy()

        self._call("stop", destroy)

    def remove(self) -> None:
        """Ends it and takes its definition away, with all that libvirt keeps for it. Nothing where it is gone."""
        if self.state() == "gone":
            return
        self.stop()
        self._call("undefine", _undefine)

    def sources(self) -> dict[str, tuple[str, bool]]:
        """The file of each disk by target, and whether it has a backing image: as it runs, or would."""
        found: dict[str, tuple[str, bool]] = self._call("look at", lambda d: boot_xml.sources(d.XMLDesc(0)))
        return found

    def switch(self, images: Mapping[str, str]) -> None:
        """Puts these images, which exist and have the disks' images as their backing, on top, all at one instant."""
        libvirt = lv.binding()
        others = [target for target in self.sources() if target not in images]
        flags = (
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
        )
        xml = boot_xml.switch(images, others)
        self._call("change the disks of", lambda domain: domain.snapshotCreateXML(xml, flags))

    def pull(self, target: str, poll: float) -> Iterator[PullProgress]:
        """Copies what a disk's image lacks into it, or follows the copy that runs; ends when no copy runs any more.

        That it is whole is told by `sources`, not by the end.
        """
        if not self._pulling(target):
            self._call(f"copy disk {target} of", lambda domain: domain.blockPull(target, 0, 0))
        while found := self._pulling(target):
            yield PullProgress(int(found.get("cur", 0)), int(found.get("end", 0)))
            time.sleep(poll)

    def wait_for_pulls(self, targets: Iterable[str], poll: float) -> None:
        """Until libvirt knows of the end of each copy, which QEMU tells it a moment after."""
        while self.state() not in ("off", "gone") and any(map(self._pulling, targets)):
            time.sleep(poll)

    def end_pull(self, target: str) -> None:
        """Ends the copy, if one runs; what was copied stays."""
        if self._pulling(target):
            self._call(f"end the copy of disk {target} of", lambda domain: domain.blockJobAbort(target, 0))

    def _pulling(self, target: str) -> dict[str, Any]:
        found: dict[str, Any] = self._call("look at the disks of", lambda domain: domain.blockJobInfo(target, 0))
        return found

    def look_again(self, targets: Collection[str]) -> None:
        """What these disks' images hang on was changed while it is off: at its start libvirt looks into them."""
        libvirt = lv.binding()

        def define(raw: Any) -> None:
            flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
            xml = raw.lookupByUUIDString(self._uuid).XMLDesc(flags)
            raw.defineXML(boot_xml.look_again(xml, targets))

        self._connection.call(f"define {self.name}", define, self.name)

    def stand_alone(self, given: Mapping[str, Mapping[str, str]], moved: Mapping[str, str]) -> None:
        """Defines it anew with nothing of what it hung on; `given`, `moved`: see boot_xml."""
        libvirt = lv.binding()

        def define(raw: Any) -> None:
            flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
            xml = raw.lookupByUUIDString(self._uuid).XMLDesc(flags)
            raw.defineXML(boot_xml.stand_alone(xml, given, moved))

        self._connection.call(f"define {self.name}", define, self.name)


def _undefine(domain: Any) -> None:
    libvirt = lv.binding()
    flags = libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    flags |= libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
    tpm = lv.constant("VIR_DOMAIN_UNDEFINE_TPM") or 0  # since libvirt 8.9
    try:
        domain.undefineFlags(flags | tpm)
    except libvirt.libvirtError as error:
        if not tpm or code_of(error) != lv.INVALID_ARG:
            raise
        domain.undefineFlags(flags)  # a daemon that is older than this binding
