"""What libvirt and the repositories say, looked at now and then, and kept as it was seen last.

A repository is read by `vmbackup info`, a process of its own: the service holds no key, and whatever a store does to
a reader, hanging included, happens there.
"""

import json
import logging
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any, Protocol

from vmbackup.daemon.child import PROGRAM, environment
from vmbackup.daemon.inforce import in_memory
from vmbackup.errors import VmbackupError

LOOK_SECONDS = 600.0  # a look that takes longer has failed: the store hangs
SIZES_EVERY = 3600.0  # seconds: counting the objects of a large bucket takes thousands of requests
_log = logging.getLogger("vmbackup.daemon.outlook")


@dataclass(frozen=True)
class Seen:
    """A guest's restore points in one repository, times in seconds since the epoch.

    `times`: of all of them, newest first; `last`: of the newest that is not known to be damaged, 0 where there is none.
    `drilled`: when one last booted in a drill, within `boot_seconds`, and `checks` held.
    """

    domain: str
    uuid: str
    times: tuple[float, ...] = ()
    last: float = 0.0
    last_point: str | None = None
    freeze_seconds: float = 0.0
    quiesce_ok: bool = False
    drilled: float = 0.0
    boot_seconds: float | None = None
    checks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Store:
    """A repository as it was seen last. `up`: the last look was good; None: nobody has looked yet."""

    name: str
    up: bool | None = None
    error: str | None = None
    looked: float = 0.0
    guests: Mapping[str, Seen] = field(default_factory=dict)  # by UUID
    points: int = 0
    damaged_objects: int = 0
    bytes: int | None = None
    objects: int | None = None
    verified: Mapping[str, float] = field(default_factory=dict)  # by domain
    last_verified: float = 0.0


class Memory(Protocol):
    """Where small facts outlive the service."""

    def remember(self, name: str, value: str) -> None:
        """Keeps a value."""

    def recall(self, name: str) -> str | None:
        """The value, None where none is kept."""


class Outlook:
    """The last sight of libvirt's domains and of all repositories. Thread-safe.

    `domains`: asks libvirt, gives UUID by name. `config`: the text of the configuration in force.
    """

    def __init__(
        self,
        domains: Callable[[], Mapping[str, str]],
        config: Callable[[], bytes],
        memory: Memory,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ask, self._config, self._memory, self._clock = domains, config, memory, clock
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._answered = threading.Event()
        self._domains = _recalled_domains(memory)
        self._stores: dict[str, Store] = {}
        self._sized: dict[str, float] = {}
        self._looking: subprocess.Popen[bytes] | None = None
        self._added: dict[str, list[Seen]] = {}  # by repository: points made since its last look began
        self.libvirt_up = False
        self.libvirt_error: str | None = None

    def domains(self) -> dict[str, str]:
        """UUID by name of the domains, as libvirt said last."""
        with self._lock:
            return dict(self._domains)

    def store(self, name: str) -> Store:
        """The repository as it was seen last; before the first look as it was seen by the service's former life."""
        with self._lock:
            if name not in self._stores:
                self._stores[name] = self._recalled(name)
            return self._stores[name]

    def seen(self, repository: str, domain: str) -> Seen | None:
        """The guest's restore points, by the UUID that libvirt knows for its name; a vanished one by its name."""
        store, uuid = self.store(repository), self.domains().get(domain)
        if uuid is not None:
            return store.guests.get(uuid)
        named = [seen for seen in store.guests.values() if seen.domain == domain]
        return max(named, key=lambda seen: seen.last, default=None)

    def last_point(self, repository: str, domain: str) -> float:
        """When its newest restore point is of that is not known to be damaged; 0 where there is none."""
        seen = self.seen(repository, domain)
        return seen.last if seen else 0.0

    def look_at_libvirt(self, within: float = 30.0) -> bool:
        """Asks libvirt for its domains; False where it does not answer, and what it said last stays.

        Who comes while another asks waits for the same answer.
        """
        if not self._asking.acquire(blocking=False):
            return self._answered.wait(within) and self.libvirt_up
        self._answered.clear()
        error = self._asked(within)
        if error != self.libvirt_error:
            _log.log(logging.WARNING if error else logging.INFO, "libvirt: %s", error or "answers again")
        self.libvirt_up, self.libvirt_error = error is None, error
        self._answered.set()
        return error is None

    def _asked(self, within: float) -> str | None:
        """The error; `_asking`, which is held, is let go when libvirt has answered, however late."""
        said: list[str | Mapping[str, str]] = []

        def ask() -> None:
            try:
                said.append(self._ask())
            except VmbackupError as error:
                said.append(error.message)
            finally:
                self._asking.release()

        thread = threading.Thread(target=ask, name="libvirt", daemon=True)
        thread.start()
        thread.join(within)
        if not said:
            return f"has not answered for {within:.0f} s"
        if isinstance(said[0], str):
            return said[0]
        with self._lock:
            self._domains = dict(said[0])
        self._memory.remember("domains", json.dumps(self._domains))
        return None

    def look_at_store(self, name: str, url: str) -> Store:
        """Reads a repository; where that fails, what was seen before stays, with the error."""
        now = self._clock()
        with self._lock:
            self._added[name] = []
        sizes = now - self._sized.get(name, 0.0) > SIZES_EVERY
        try:
            store = _store(name, run_json(self._config(), _arguments(name, sizes), LOOK_SECONDS, self._begun), now)
        except LookError as error:
            store = replace(self.store(name), up=False, error=str(error), looked=now)
        with self._lock:
            before = self._stores.get(name)
            if before and store.up and not sizes:
                store = replace(store, bytes=before.bytes, objects=before.objects)
            if sizes and store.up:
                self._sized[name] = now
            if store.up:
                for made in self._added[name]:  # while it looked, and perhaps too late to be seen
                    store = _with(store, made)
            self._stores[name] = store
        if store.error and (before is None or before.up is None or before.error != store.error):
            _log.warning("repository %s at %s: %s", name, url, store.error)
        self._memory.remember(f"store/{name}", json.dumps(asdict(store)))
        return store

    def end_look(self) -> None:
        """Ends the process of the look that goes on, if any."""
        if self._looking is not None and self._looking.poll() is None:
            self._looking.terminate()

    def _begun(self, process: "subprocess.Popen[bytes]") -> None:
        self._looking = process

    def add_point(self, repository: str, point: Mapping[str, Any]) -> None:
        """A restore point that a run has just made, as `backup --json` tells it: no need to look for it."""
        made, store = _seen(str(point["domain"]), str(point["domain_uuid"]), [point]), self.store(repository)
        with self._lock:
            self._added.setdefault(repository, []).append(made)
            self._stores[repository] = replace(_with(self._stores.get(repository, store), made), up=True, error=None)

    def forget_sizes(self, name: str) -> None:
        """The next look counts again: a prune has changed what there is."""
        with self._lock:
            self._sized.pop(name, None)

    def _recalled(self, name: str) -> Store:
        kept = self._memory.recall(f"store/{name}")
        if kept is None:
            return Store(name)
        try:
            plain = json.loads(kept)
            guests = {uuid: _remembered(seen) for uuid, seen in plain["guests"].items()}
            return Store(**{**plain, "guests": guests, "up": None})
        except (ValueError, KeyError, TypeError, AttributeError):
            return Store(name)


def _recalled_domains(memory: Memory) -> dict[str, str]:
    try:
        return dict(json.loads(memory.recall("domains") or "{}"))
    except (ValueError, TypeError):
        return {}


class LookError(Exception):
    """A look at a repository failed; the message is one sentence."""


def run_json(
    config: bytes,
    arguments: Sequence[str],
    within: float,
    begun: Callable[["subprocess.Popen[bytes]"], None] = lambda _: None,
) -> dict[str, Any]:
    """What `vmbackup ARGUMENTS --json` prints, run as a process of its own, told to `begun`. Raises LookError."""
    with in_memory(config) as file:
        command = [*PROGRAM, "--config", f"/dev/fd/{file}", "--json", *arguments]
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=(file,),
                env=environment(),
            )
        except OSError as error:
            raise LookError(f"cannot be asked: {error.strerror}") from None
        with process:
            begun(process)
            output = _output(process, within)
    try:
        document: dict[str, Any] = json.loads(output)
    except ValueError:
        raise LookError(f"cannot be asked: its process ended with {process.returncode}") from None
    if "error" in document:
        raise LookError(str(document["error"]["message"]))
    return document


def _output(process: "subprocess.Popen[bytes]", within: float) -> bytes:
    try:
        return process.communicate(timeout=within)[0]
    except subprocess.TimeoutExpired:
        raise LookError(f"has not answered for {within:.0f} s") from None
    finally:
        process.kill()  # nothing, where it has ended


def _arguments(name: str, sizes: bool) -> list[str]:
    return ["--repository", name, "info", *(["--sizes"] if sizes else [])]


def _store(name: str, document: Mapping[str, Any], now: float) -> Store:
    """Of what `info --json` says."""
    about, sizes, verified = document["repository"], document["sizes"] or {}, document["verified"] or {}
    guests = {g["domain_uuid"]: _drilled(g) for g in document["guests"]}
    return Store(
        name,
        up=True,
        looked=now,
        guests=guests,
        points=about["points"],
        damaged_objects=about["damaged_objects"],
        bytes=sizes.get("bytes"),
        objects=sizes.get("objects"),
        verified={domain: _seconds(time) for domain, time in verified.get("domains", {}).items()},
        last_verified=_seconds(verified.get("time")),
    )


def _with(store: Store, made: Seen) -> Store:
    """The repository with one restore point more, unless it has it."""
    old = store.guests.get(made.uuid)
    if old and made.last in old.times:
        return store
    both = made
    if old:
        both = replace(made, times=(*made.times, *old.times), drilled=old.drilled)
        both = replace(both, boot_seconds=old.boot_seconds, checks=old.checks)
    return replace(store, guests={**store.guests, made.uuid: both}, points=store.points + 1)


def _drilled(guest: Mapping[str, Any]) -> Seen:
    """A guest of `info`, with its last good drill."""
    good = guest["drill"]["last_success"] or {}
    seen = _seen(guest["domain"], guest["domain_uuid"], guest["points"])
    checks = tuple(str(check["name"]) for check in good.get("checks", ()))
    return replace(seen, drilled=_seconds(good.get("time")), boot_seconds=good.get("boot_seconds"), checks=checks)


def _remembered(seen: Mapping[str, Any]) -> Seen:
    """One that was kept as JSON, perhaps by an older version."""
    return Seen(**{**seen, "times": tuple(seen["times"]), "checks": tuple(seen.get("checks", ()))})


def _seen(domain: str, uuid: str, points: Sequence[Mapping[str, Any]]) -> Seen:
    newest: Mapping[str, Any] = next((point for point in points if not point.get("damaged")), {})
    return Seen(
        domain,
        uuid,
        tuple(_seconds(point["time"]) for point in points),
        _seconds(newest.get("time")),
        newest.get("id"),
        newest.get("freeze_seconds") or 0.0,
        newest.get("consistency") in ("filesystem", "application"),
    )


def _seconds(time: str | None) -> float:
    return datetime.fromisoformat(time).timestamp() if time else 0.0
