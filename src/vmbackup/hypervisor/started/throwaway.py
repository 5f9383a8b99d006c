"""A throw-away domain: transient, watched through its console and its screen, gone with the process that made it.

libvirt ends it with the connection that made it, so that it outlives no killed process. Its name says whose it is:
none of these is ever listed among the domains that jobs and people work on.
"""

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable
from typing import Any, Literal, Self

from vmbackup.errors import HypervisorError, NotFoundError
from vmbackup.hypervisor import _libvirt as lv
from vmbackup.hypervisor.connection import Connection
from vmbackup.hypervisor.documents import tpm_root
from vmbackup.hypervisor.domains import PAUSED_BY_IO_ERROR
from vmbackup.hypervisor.failures import code_of, translated
from vmbackup.hypervisor.live.agent import GuestAgent
from vmbackup.hypervisor.names import is_throwaway
from vmbackup.hypervisor.started.console import Console

State = Literal["running", "error", "gone"]
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PIECE = 64 << 10
_MOST_PIECES = 64  # of the console at a look: a guest that floods it is not heard to the end
_MOST_PICTURE = 64 << 20  # bytes: 4096 x 4096 pixels are 48 MiB
_ENDED = (lv.NO_DOMAIN, lv.OPERATION_INVALID)
_TRIES = 5  # to end a domain whose process does not go at once
_NO_DATA = -2  # of a stream that does not block


class Throwaway:
    """One that runs. A context manager that ends it; `end` may be called again."""

    def __init__(self, connection: Connection, uuid: str, name: str, console: Any) -> None:
        self._connection, self.uuid, self.name = connection, uuid, name
        self._stream = console
        self.console = Console()
        self.agent = GuestAgent(connection, uuid)

    @classmethod
    def start(cls, connection: Connection, xml: str) -> Self:
        """Starts the domain of `xml`; nothing that it prints is missed. Raises HypervisorError."""
        libvirt = lv.binding()
        with translated("start the throw-away guest"):
            raw = connection.live()
            flags = libvirt.VIR_DOMAIN_START_PAUSED | libvirt.VIR_DOMAIN_START_AUTODESTROY
            domain = raw.createXML(xml, flags)
            made = cls(connection, domain.UUIDString(), domain.name(), raw.newStream(libvirt.VIR_STREAM_NONBLOCK))
            try:
                domain.openConsole(None, made._stream, libvirt.VIR_DOMAIN_CONSOLE_FORCE)
                domain.resume()
            except BaseException:
                made.end()
                raise
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def state(self) -> State:
        """`error`: paused, for a disk could not be written; `gone`: the guest has ended."""
        try:
            state = self._connection.call("look at the throw-away guest", lambda raw: self._domain(raw).state())
        except NotFoundError:
            return "gone"
        return "error" if tuple(state) == PAUSED_BY_IO_ERROR else "running"

    def listen(self) -> list[str]:
        """Lines of its console that are new, or have grown."""
        libvirt = lv.binding()
        found: list[str] = []
        for _ in range(_MOST_PIECES):
            try:
                data = self._stream.recv(_PIECE)
            except libvirt.libvirtError:
                break  # the guest has ended
            if not isinstance(data, bytes) or not data:
                break
            found += self.console.feed(data)
        return found

    def screen(self) -> tuple[str, bytes]:
        """A picture of its screen, and of what kind it is (image/x-portable-pixmap). Raises HypervisorError."""
        return self._connection.call("take a picture of the throw-away guest", self._shot, again=False)

    def _shot(self, raw: Any) -> tuple[str, bytes]:
        stream = raw.newStream(0)
        kind = self._domain(raw).screenshot(stream, 0, 0)
        pieces, left = [], _MOST_PICTURE
        while data := stream.recv(_PIECE):
            pieces.append(data)
            left -= len(data)
            if left < 0:
                stream.abort()
                raise HypervisorError(f"the guest's screen has more than {_MOST_PICTURE >> 20} MiB")
        stream.finish()
        return str(kind), b"".join(pieces)

    def end(self) -> None:
        """Ends it at once. Raises HypervisorError where libvirt cannot."""
        libvirt = lv.binding()
        with contextlib.suppress(libvirt.libvirtError):
            self._stream.abort()
        end(self._connection, self.name)

    def _domain(self, raw: Any) -> Any:
        return raw.lookupByUUIDString(self.uuid)


def remove_state(domain_folders: str, uuid: str) -> None:
    """What libvirt keeps of an emulated TPM; it goes with a transient domain, but not with one that was killed."""
    if _UUID.fullmatch(uuid):
        shutil.rmtree(os.path.join(tpm_root(domain_folders), uuid), ignore_errors=True)


def end(connection: Connection, name: str, sleep: Callable[[float], None] = time.sleep) -> bool:
    """Ends the throw-away domain of that name; False where there is none. Raises HypervisorError."""
    libvirt = lv.binding()
    for attempt in range(_TRIES):
        try:
            domain = connection.live().lookupByName(name)
            if not is_throwaway(name, persistent=bool(domain.isPersistent())):
                return False
            domain.destroy()
            return True
        except libvirt.libvirtError as error:
            if code_of(error) in _ENDED:
                return attempt > 0
            if attempt == _TRIES - 1:
                with translated(f"end the domain {name}"):
                    raise
            sleep(1.0)
    return False
