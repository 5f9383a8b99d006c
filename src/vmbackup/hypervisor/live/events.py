"""libvirt's events, sorted by domain into queues. Callbacks run in libvirt's loop: they only put."""

import threading
from collections import defaultdict
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Literal

from vmbackup.hypervisor._libvirt import binding, constant


@dataclass(frozen=True)
class Event:
    """Something that happened to a domain.

    `kind`: `job` a job completed (`detail` its message, `success` as libvirt says); `stopped` QEMU ended or
    the guest powered off; `io_error` (`detail` the path of the guest's image, "" where libvirt does not know;
    `reason` "enospc" or another; `paused` whether the guest was); `threshold` a block
    threshold was passed (`detail` as vda[3]).
    """

    kind: Literal["job", "stopped", "io_error", "threshold"]
    detail: str = ""
    success: bool = False
    reason: str = ""
    paused: bool = False


EventQueue = SimpleQueue[Event | None]


class EventHub:
    """Who listens to which domain. Outlives reconnects: `attach` registers with each new connection."""

    def __init__(self) -> None:
        self._queues: dict[str, list[EventQueue]] = defaultdict(list)
        self._guard = threading.Lock()

    def subscribe(self, uuid: str) -> EventQueue:
        """A queue that gets each event of that domain from now on."""
        queue: EventQueue = SimpleQueue()
        with self._guard:
            self._queues[uuid].append(queue)
        return queue

    def unsubscribe(self, uuid: str, queue: EventQueue) -> None:
        """No more events into that queue."""
        with self._guard:
            if queue in self._queues[uuid]:
                self._queues[uuid].remove(queue)

    def attach(self, connection: Any) -> list[int]:
        """Registers for the events of all domains; returns what `detach` needs."""
        lv = binding()
        wanted = [
            (lv.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle),
            (lv.VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON, self._io_error),
            (constant("VIR_DOMAIN_EVENT_ID_JOB_COMPLETED"), self._job),
            (constant("VIR_DOMAIN_EVENT_ID_BLOCK_THRESHOLD"), self._threshold),
        ]
        return [connection.domainEventRegisterAny(None, which, callback, None) for which, callback in wanted]

    def _put(self, domain: Any, event: Event) -> None:
        with self._guard:
            for queue in self._queues.get(domain.UUIDString(), ()):
                queue.put(event)

    def _lifecycle(self, _connection: Any, domain: Any, event: int, detail: int, _opaque: Any) -> None:
        lv = binding()
        if event in (lv.VIR_DOMAIN_EVENT_STOPPED, lv.VIR_DOMAIN_EVENT_SHUTDOWN, lv.VIR_DOMAIN_EVENT_CRASHED):
            self._put(domain, Event("stopped", detail=f"event {event}, detail {detail}"))

    def _io_error(
        self, _connection: Any, domain: Any, path: str, _alias: str, action: int, reason: str, _opaque: Any
    ) -> None:
        paused = action == binding().VIR_DOMAIN_EVENT_IO_ERROR_PAUSE
        self._put(domain, Event("io_error", detail=path or "", reason=reason or "", paused=paused))

    def _job(self, _connection: Any, domain: Any, stats: dict[str, Any], _opaque: Any) -> None:
        self._put(domain, Event("job", detail=str(stats.get("errmsg", "")), success=bool(stats.get("success"))))

    def _threshold(
        self, _connection: Any, domain: Any, device: str, _path: str, _threshold: int, _excess: int, _opaque: Any
    ) -> None:
        self._put(domain, Event("threshold", detail=device))
