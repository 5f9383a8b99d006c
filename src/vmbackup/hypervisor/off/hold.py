"""The images of a guest that is off, held for reading; let go at once when somebody wants to write one.

A guest that is started must never wait for a backup, nor fail for it. Where the kernel can tell of an open for writing
before it happens (a lease on a file), QEMU's own lock is taken as well, and is gone by the time the kernel lets the
opener go on. Elsewhere (block devices, file systems on the network) no lock is taken, and what a write leaves behind
tells of it: times and sizes of files, write counters of devices.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

from vmbackup.errors import HypervisorError, JobConflictError
from vmbackup.hypervisor.off.image import OffImage
from vmbackup.hypervisor.off.lease import Lease, traces
from vmbackup.hypervisor.off.server import OffServer
from vmbackup.hypervisor.off.writers import refuse_writers

# Seconds between two looks at the leases: so long does a guest's start wait at most.
_LOOK = 0.02
# Seconds between two looks at the traces of writes.
_LOOK_TRACES = 1.0


class OffHold:
    """A thread that owns leases and servers. `sockets` and `bitmaps` (of incrementals) are by target."""

    def __init__(self, images: Sequence[OffImage], sockets: Mapping[str, str], bitmaps: Mapping[str, str]) -> None:
        self._images, self._sockets, self._bitmaps = images, sockets, bitmaps
        self._leases: list[Lease] = []
        self._servers: list[OffServer] = []
        self._before: tuple[object, ...] = ()
        self._error: BaseException | None = None
        self._lost: str | None = None
        self._begun, self._over = threading.Event(), threading.Event()
        self._guard = threading.Lock()  # leases and servers are looked at, or let go
        self._thread = threading.Thread(target=self._work, name="images of a stopped guest", daemon=True)

    def start(self) -> None:
        """From its return on nothing of the images has changed. Raises JobConflictError, HypervisorError."""
        self._thread.start()
        self._begun.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error

    def end(self) -> None:
        """Lets the images go. Never raises; may be called twice."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def lost(self) -> str | None:
        """What is known to have happened to the images; None while they are as they were at the start."""
        with self._guard:
            if self._lost is None and not self._over.is_set():
                self._lost = self._changed()
            return self._lost

    def _work(self) -> None:
        try:
            self._take()
        except BaseException as error:  # raised again by `start`
            self._error = error
            self._let_go()
            return
        finally:
            self._begun.set()
        look_again = time.monotonic() + _LOOK_TRACES
        while not self._over.wait(_LOOK) and self._lost is None:
            with self._guard:
                self._lost = self._lost or self._wanted()
            if time.monotonic() > look_again:
                self.lost()
                look_again = time.monotonic() + _LOOK_TRACES
        with self._guard:
            self._let_go()

    def _take(self) -> None:
        for image in self._images:
            with _told(image.path):
                self._leases.append(Lease(image.path))
        for image, lease in zip(self._images, self._leases, strict=True):
            bitmap = self._bitmaps.get(image.target)
            for device in image.devices:
                refuse_writers(device)
            if not lease.held:
                OffServer(image, self._sockets[image.target], bitmap=None, shared=False).end()  # nobody writes it now
                os.unlink(self._sockets[image.target])
            server = OffServer(image, self._sockets[image.target], bitmap=bitmap, shared=not lease.held)
            self._servers.append(server)
        with _told(self._images[0].path):
            self._before = traces(self._files())
        if trouble := self._wanted():
            raise JobConflictError(trouble, "run the backup again")

    def _files(self) -> list[str]:
        return [path for image in self._images for path in image.files]

    def _wanted(self) -> str | None:
        """A file that somebody waits to open for writing."""
        broken = [lease.path for lease in self._leases if lease.broken]
        return f"{broken[0]} was opened for writing" if broken else None

    def _changed(self) -> str | None:
        if trouble := self._wanted():
            return trouble
        dead = [server.image.path for server in self._servers if not server.alive]
        if dead:
            return f"the qemu-nbd that read {dead[0]} has ended"
        try:
            return None if traces(self._files()) == self._before else "an image was written to"
        except OSError as error:
            return f"{error.filename} cannot be looked at any more: {error.strerror}"

    def _let_go(self) -> None:
        """Locks first, then leases: who waits for a lease finds no lock."""
        for server in self._servers:
            server.end()
        for lease in self._leases:
            lease.release()
        for socket in self._sockets.values():
            with contextlib.suppress(OSError):
                os.unlink(socket)


@contextlib.contextmanager
def _told(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HypervisorError(f"{error.filename or path} cannot be read: {error.strerror}") from error
