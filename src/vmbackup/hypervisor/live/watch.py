"""Watches a running job through libvirt's events: a thread that sleeps until one comes.

It must be a thread of its own: a full scratch pauses the guest at once, and the run may be waiting for a slow
store at that moment.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from vmbackup.errors import HypervisorError, PointInTimeLostError
from vmbackup.hypervisor.connection import Connection
from vmbackup.hypervisor.domains import handle
from vmbackup.hypervisor.live.events import Event
from vmbackup.hypervisor.live.readers import AGAIN
from vmbackup.hypervisor.live.scratch import LOOK_INTERVAL, ScratchWatch
from vmbackup.hypervisor.source import DomainInfo


class JobWatch:
    """Says whether the job is lost, and ends it (`give_up`, once, from its own thread) before scratch is full.

    Subscribed from construction, so that no event after the begin is missed; `start` begins to act on them.
    """

    def __init__(self, connection: Connection, info: DomainInfo, give_up: Callable[[], None]) -> None:
        self._connection, self._info, self._give_up = connection, info, give_up
        self._queue = connection.events.subscribe(info.uuid)
        self._scratch: ScratchWatch | None = None
        self._devices: Mapping[str, str] = {}
        self._others: Collection[str] = ()
        self._next_look = 0.0
        self._ending = False
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None
        self._lost: HypervisorError | None = None
        self.scratch_failed = False
        self.ended = threading.Event()

    def start(self, scratch: ScratchWatch, devices: Mapping[str, str], others: Collection[str] = ()) -> None:
        """Watches those scratch files; `devices` maps the name of each one's node to its path.

        `others` are the paths of disks that are not in the backup.
        """
        scratch.open()
        self._scratch, self._devices, self._others = scratch, devices, others
        for device in devices:
            self._set_threshold(device, scratch.first_threshold())
        self._thread = threading.Thread(target=self._run, name=f"watch-{self._info.name}", daemon=True)
        self._thread.start()

    def expect_end(self) -> None:
        """From here on the end of the job is ours."""
        with self._guard:
            self._ending = True

    def let_scratch_go(self) -> None:
        """The job is over: its files are in nobody's hands."""
        if self._scratch:
            self._scratch.close()

    def stop(self) -> None:
        """No more events; returns when its thread is done."""
        self.let_scratch_go()
        self._connection.events.unsubscribe(self._info.uuid, self._queue)
        self._queue.put(None)
        # Not alive where an interrupt came before its start: then it finds the end in its queue at once.
        if self._thread and self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def raise_if_lost(self) -> None:
        """Raises what ended the job, where something did."""
        if self._lost is not None:
            raise self._lost

    def require_scratch(self) -> None:
        """Raises HypervisorError where the storage has lost what was written to the scratch files until now."""
        if self._scratch:
            self._scratch.require_kept()

    def look(self) -> None:
        """raise_if_lost, and every LOOK_INTERVAL at the scratch space."""
        self.raise_if_lost()
        now = time.monotonic()
        if self._scratch is None or now < self._next_look:
            return
        self._next_look = now + LOOK_INTERVAL
        try:
            self._scratch.look()
        except HypervisorError as error:
            self._fail(error)
        self.raise_if_lost()

    def _run(self) -> None:
        while (event := self._queue.get()) is not None:
            try:
                self._handle(event)
            except HypervisorError as error:
                self._lose(error)

    def _handle(self, event: Event) -> None:
        if event.kind == "job":
            what = f"the backup job of {self._info.name} ended while it was read"
            told = "no reason told" if event.success else "QEMU ended"
            self._lose(PointInTimeLostError(f"{what} ({event.detail or told})", AGAIN))
            self.ended.set()
        elif event.kind == "stopped":
            self._lose(PointInTimeLostError(f"domain {self._info.name} stopped while it was read", AGAIN))
            self.ended.set()
        elif event.kind == "io_error" and event.detail not in self._others:
            self._fail(self._io_error(event))
        elif event.kind == "threshold" and event.detail in self._devices and self._scratch:
            try:
                self._scratch.look()
                self._set_threshold(event.detail, self._scratch.next_threshold_of(self._devices[event.detail]))
            except HypervisorError as error:
                self._fail(error)

    def _io_error(self, event: Event) -> HypervisorError:
        """Of a disk in the backup: QEMU does not tell whether its image failed, or the scratch file before that.

        libvirt 9.0 names no path then, 11.3 that of the image. Storage is not asked: the guest waits for the end.
        """
        done = "paused until the run was ended" if event.paused else "given I/O errors"
        then = f", and the guest was {done}"
        try:
            if self._scratch:
                self._scratch.require_kept(folder=False, then=then)
        except HypervisorError as error:
            return error
        if event.reason == "enospc" and self._scratch:
            return self._scratch.error()
        return HypervisorError(
            f"a disk of {self._info.name}, or its scratch file, failed during the run{then}",
            "nothing was committed; 'dmesg' tells which; scratch_dir must be on reliable local storage",
        )

    def _fail(self, error: HypervisorError) -> None:
        self.scratch_failed = True
        if self._lose(error):
            self._give_up()

    def _lose(self, error: HypervisorError) -> bool:
        """Notes the first cause, unless the end was ours. True where it was that."""
        with self._guard:
            if self._ending or self._lost is not None:
                return False
            self._lost = error
            return True

    def _set_threshold(self, device: str, size: int) -> None:
        def set_it(raw: Any) -> None:
            handle(raw, self._info).setBlockThreshold(device, size)

        # Where it cannot be set, looking every few seconds is left.
        with contextlib.suppress(HypervisorError):
            self._connection.call("watch the scratch file", set_it, self._info.name)
