"""The disks of a running job, read over NBD; every connection is known, so that the seal can end them all."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vmbackup.errors import HypervisorError
from vmbackup.hypervisor.live.jobxml import EXPORT_BITMAP
from vmbackup.hypervisor.remote.remote import address_of, is_place
from vmbackup.hypervisor.source import DiskInfo, Mode
from vmbackup.nbd import Extent, NbdClient, NbdError, RequestFailed, extents
from vmbackup.nbd.channel import Address
from vmbackup.nbd.tls import ClientTls

# What to do after a run that was lost.
AGAIN = "nothing was committed and the earlier restore points are good: run the backup again"
_ALLOCATION_CONTEXT = "base:allocation"
# A read that the server could not do is asked for again this often before the disk has failed.
_TRIES = 3
# Connections that are kept open while nobody uses them: QEMU takes 100 at a time.
_MOST_IDLE = 64


class Connections:
    """The open connections to a job's socket, or its server on the network (with `tls`).

    `explain` says what an NBD failure was caused by, if it is known.

    They are kept for the next user, and made before the first one needs them as far as that is known: in the moment
    of a handshake nobody should end the job (docs/adr/0005-seal.md).
    """

    def __init__(self, socket: str, explain: Callable[[], None], tls: ClientTls | None = None) -> None:
        self._address: Address = socket
        if is_place(socket):
            address = address_of(socket)
            self._address = address.host, address.port
        self._explain, self._tls = explain, tls
        self._guard = threading.Lock()
        self._handshake = threading.Lock()  # held by who opens a connection: one at a time
        self._open: set[NbdClient] = set()
        self._idle: list[tuple[str, tuple[str, ...], NbdClient]] = []
        self._closed = False

    def borrow(self, export: str, contexts: tuple[str, ...] = ()) -> NbdClient:
        """A connection for one user. Raises HypervisorError, also once the job is over."""
        with self._guard:
            for place, (name, its_contexts, client) in enumerate(self._idle):
                if (name, its_contexts) == (export, contexts):
                    del self._idle[place]
                    return client
        with self.failures(), self._handshake:
            if self._closed:
                raise HypervisorError(f"the backup job is over: disk {export} cannot be read any more")
            client = NbdClient.connect(self._address, export, contexts=contexts, at_once=True, tls=self._tls)
            with self._guard:
                self._open.add(client)
            return client

    def give_back(self, export: str, contexts: tuple[str, ...], client: NbdClient) -> None:
        """Keeps one for the next user, unless it has replies to come or there are many."""
        with self._guard:
            if client in self._open and not client.outstanding and len(self._idle) < _MOST_IDLE:
                self._idle.append((export, contexts, client))
                return
            self._open.discard(client)
        client.close()

    @property
    def outstanding(self) -> int:
        """Reads asked for and not yet answered, over all connections."""
        with self._guard:
            return sum(client.outstanding for client in self._open)

    def close(self) -> None:
        """Closes all, with NBD's good-bye; for the thread that knows them to be idle."""
        for client in self._take():
            client.close()

    def abort(self) -> None:
        """Cuts all, from any thread: whoever reads gets an error.

        Returns when no handshake is under way either. A job that ends in the midst of one can make QEMU stand still
        for good (docs/adr/0005-seal.md). The others are cut before, for it may wait for QEMU, and QEMU for them.
        """
        for client in self._take():
            client.abort()
        with self._handshake:
            late = self._take()
        for client in late:
            client.abort()

    def _take(self) -> set[NbdClient]:
        with self._guard:
            taken, self._open, self._closed = self._open, set(), True
            self._idle.clear()
        return taken

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Turns an NbdError from inside into ours: the job's own cause where it is known.

        All connections are cut first: QEMU stands still, and libvirt with it, while replies of it are not taken.
        """
        try:
            yield
        except NbdError as error:
            self.abort()
            self._explain()
            message = f"the disk could not be read from QEMU: {error.message}"
            raise HypervisorError(message, error.hint or AGAIN) from error


class LiveReader:
    """A DiskReader on one NBD connection."""

    def __init__(self, connections: Connections, export: str, client: NbdClient) -> None:
        self._connections, self._export, self._client = connections, export, client
        self._closed = False
        self._reads: dict[int, tuple[int, int, memoryview, int]] = {}

    @property
    def outstanding(self) -> int:
        """Reads submitted and not yet waited for."""
        return len(self._reads)

    def submit(self, offset: int, buffer: memoryview) -> int:
        """See DiskReader."""
        with self._connections.failures():
            cookie = self._client.submit_read(offset, buffer)
        self._reads[cookie] = (cookie, offset, buffer, 1)
        return cookie

    def wait(self) -> int:
        """See DiskReader. A read that failed is asked for again twice."""
        with self._connections.failures():
            while True:
                try:
                    return self._reads.pop(self._client.wait())[0]
                except RequestFailed as error:
                    cookie, offset, buffer, tries = self._reads.pop(error.cookie)
                    if tries == _TRIES:
                        raise
                    self._reads[self._client.submit_read(offset, buffer)] = (cookie, offset, buffer, tries + 1)

    def close(self) -> None:
        """See DiskReader."""
        if not self._closed:
            self._closed = True
            self._reads.clear()
            self._connections.give_back(self._export, (), self._client)


class LiveDisk:
    """A DiskSource: a disk that QEMU serves over NBD, at its job's point in time.

    `bitmap`: what the dirty bitmap is called there. `earlier_size`: bytes of the disk at the parent's time, for an
    incremental. What lies beyond was never in a restore point: a clean bitmap says nothing of it, its allocation does.
    """

    def __init__(
        self,
        connections: Connections,
        info: DiskInfo,
        mode: Mode,
        reason: str | None,
        earlier_size: int | None = None,
        bitmap: str = EXPORT_BITMAP,
    ) -> None:
        self._connections, self._context = connections, f"qemu:dirty-bitmap:{bitmap}"
        self.info, self.mode, self.reason = info, mode, reason
        self.size = info.virtual_size
        self._compared = min(self.size, self.size if earlier_size is None else earlier_size)

    def prepare(self, readers: int) -> None:
        """Makes the connections that the disk's map and so many readers need, as far as they can be kept."""
        maps = [(_ALLOCATION_CONTEXT,), (self._context,)] if self.mode == "incremental" else [(_ALLOCATION_CONTEXT,)]
        made = [(contexts, self._borrow(contexts)) for contexts in [*maps, *[()] * readers]]
        for contexts, client in made:
            self._connections.give_back(self.info.target, contexts, client)

    def extents(self, start: int = 0, end: int | None = None) -> Iterator[Extent]:
        """See DiskSource."""
        # Two connections: with both contexts on one QEMU would look up the allocation of clean areas too.
        end = self.size if end is None else end
        with self._borrowed((_ALLOCATION_CONTEXT,)) as allocation, self._connections.failures():
            if self.mode == "incremental" and start < self._compared:
                clean_end = min(end, self._compared)
                with self._borrowed((self._context,)) as bitmap:
                    yield from extents(allocation, bitmap, start, clean_end, self._context)
                start = clean_end
            if start < end:
                yield from extents(allocation, None, start, end, None)

    def distrust(self, reason: str) -> None:
        """See DiskSource."""
        self.mode, self.reason = "reread", reason

    def open_reader(self) -> LiveReader:
        """See DiskSource."""
        return LiveReader(self._connections, self.info.target, self._borrow(()))

    def _borrow(self, contexts: tuple[str, ...]) -> NbdClient:
        client = self._connections.borrow(self.info.target, contexts)
        if client.size != self.size:
            self._connections.give_back(self.info.target, contexts, client)
            raise HypervisorError(
                f"disk {self.info.target} was resized as the run began ({self.size} to {client.size} bytes)",
                "run the backup again",
            )
        return client

    @contextmanager
    def _borrowed(self, contexts: tuple[str, ...]) -> Iterator[NbdClient]:
        client = self._borrow(contexts)
        try:
            yield client
        finally:
            self._connections.give_back(self.info.target, contexts, client)
