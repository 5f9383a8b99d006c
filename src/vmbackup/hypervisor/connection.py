"""The connection to libvirt: one sentence when there is none, opened again when the daemon restarts."""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from vmbackup.errors import HypervisorError
from vmbackup.hypervisor import _libvirt as lv
from vmbackup.hypervisor.failures import code_of, text_of, translate, translated
from vmbackup.hypervisor.live.events import EventHub
from vmbackup.hypervisor.remote.remote import host_of

T = TypeVar("T")
# A dead peer is noticed after 5 s x 3.
_KEEPALIVE_SECONDS, _KEEPALIVE_COUNT = 5, 3
# Waits between attempts to reach a restarted daemon, in seconds; a package upgrade takes a few.
_BACK_OFF = (0.1, 0.3, 1.0, 2.0, 4.0, 8.0)


class Connection:
    """A connection that any thread may use. A call that the daemon's restart interrupts is made again."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.events = EventHub()
        self._guard = threading.Lock()
        self._callbacks: list[int] = []
        self._raw: Any = self._open()

    def _open(self) -> Any:
        libvirt = lv.binding()
        try:
            raw = libvirt.open(self.uri)
        except libvirt.libvirtError as error:
            raise _unreachable(self.uri, error) from error
        with translated("register for events"):
            # Drivers inside this process (embedded, test) have no peer to keep alive.
            with contextlib.suppress(libvirt.libvirtError):
                raw.setKeepAlive(_KEEPALIVE_SECONDS, _KEEPALIVE_COUNT)
            self._callbacks = self.events.attach(raw)
        return raw

    def call(self, doing: str, function: Callable[[Any], T], domain: str = "", *, again: bool = True) -> T:
        """function(virConnect), its libvirtError turned into ours.

        `again`: repeats it on a new connection when the old one broke meanwhile; only for calls that may be
        made twice. Raises HypervisorError and its kinds, NotFoundError for a domain that is gone.
        """
        libvirt = lv.binding()
        raw = self.live()
        try:
            return function(raw)
        except libvirt.libvirtError as error:
            if not again or _alive(raw):
                raise translate(error, doing, domain) from error
        with translated(doing, domain):
            return function(self.live())

    def live(self) -> Any:
        """The virConnect, opened again where it has died. Raises HypervisorError after about 15 s of trying."""
        with self._guard:
            if _alive(self._raw):
                return self._raw
            for wait in _BACK_OFF:
                try:
                    self._raw = self._open()
                    return self._raw
                except HypervisorError:
                    time.sleep(wait)
            self._raw = self._open()
            return self._raw

    def close(self) -> None:
        """Closes it. Never raises."""
        libvirt = lv.binding()
        for callback in self._callbacks:
            try:
                self._raw.domainEventDeregisterAny(callback)
            except libvirt.libvirtError:
                break
        with contextlib.suppress(libvirt.libvirtError):
            self._raw.close()


def _alive(raw: Any) -> bool:
    try:
        return bool(raw.isAlive())
    except lv.binding().libvirtError:
        return False


def _unreachable(uri: str, error: Exception) -> HypervisorError:
    text = text_of(error)
    if code_of(error) in (lv.AUTH_FAILED, lv.ACCESS_DENIED, 79, 94) or "Permission denied" in text:
        return HypervisorError(
            f"libvirt at {uri} refuses access: {text}", "run as root, or as a member of the group libvirt"
        )
    if host := host_of(uri):
        return HypervisorError(
            f"libvirt on {host} cannot be reached at {uri}: {text}",
            f"try it as this user, with no password asked for: virsh -c '{uri}' list",
        )
    return HypervisorError(
        f"libvirt cannot be reached at {uri}: {text}",
        "start it ('systemctl start libvirtd', or virtqemud), or name another under [libvirt] uri",
    )
