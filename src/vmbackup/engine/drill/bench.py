"""Where a drill works, and what a killed one left: what it puts on a host is written down before it is there."""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

from vmbackup.engine.images.target_errors import told
from vmbackup.errors import HypervisorError, JobConflictError, TargetError
from vmbackup.hypervisor import Host
from vmbackup.hypervisor.names import throwaway_name
from vmbackup.hypervisor.started.throwaway import end, remove_state

FOLDER = "drills"  # of the state folder: a file a drill, locked while it goes on
_SCRATCH = "drill"  # of the scratch folder: overlays and the socket
_PASSABLE, _PRIVATE = 0o711, 0o700


@dataclass(frozen=True)
class Place:
    """What a drill has on the host. `name`, `uuid`: of its domain; `guest`, `origin`: name and UUID of whose it is."""

    name: str
    guest: str
    folder: str
    uuid: str = ""
    origin: str = ""

    def is_of(self, wanted: Collection[str] | None) -> bool:
        """Whether it is a drill of one of these guests, names or UUIDs; None for all."""
        return wanted is None or self.guest in wanted or self.origin in wanted


class Bench:
    """The place of one drill, held from `taken` to the end of the block; then nothing of it is left."""

    def __init__(self, host: Host, place: Place, descriptor: int) -> None:
        self._host, self._descriptor = host, descriptor
        self.place = place

    @classmethod
    @contextlib.contextmanager
    def taken(cls, host: Host, stable: str, guest: str, origin: str = "") -> Iterator[Self]:
        """The place of the guest that `stable` names, for people `guest`, its UUID `origin`.

        Raises JobConflictError, TargetError.
        """
        name = throwaway_name(stable)
        place = Place(name, guest, os.path.join(host.places.scratch_dir, _SCRATCH, name), origin=origin)
        descriptor = _locked(_path(host, name))
        if descriptor is None:
            raise JobConflictError(f"another drill of {guest} goes on", "wait for it, or end it; then drill again")
        bench = cls(host, place, descriptor)
        try:
            _clear(host, descriptor)
            bench.write_down()
            _make(Path(place.folder))
            yield bench
        finally:
            try:
                bench.clear()
            finally:
                os.close(descriptor)

    @property
    def socket(self) -> str:
        """Where the restore point is served."""
        return os.path.join(self.place.folder, "nbd.sock")

    def path(self, name: str) -> Path:
        """A file of the drill's."""
        return Path(self.place.folder) / name

    def write_down(self, uuid: str = "") -> None:
        """Before anything of that UUID is on the host."""
        self.place = replace(self.place, uuid=uuid)
        data = json.dumps(asdict(self.place)).encode()
        with told(_path(self._host, self.place.name)):
            os.pwrite(self._descriptor, data, 0)
            os.ftruncate(self._descriptor, len(data))
            os.fsync(self._descriptor)

    def clear(self) -> None:
        """Takes all of it away. Raises HypervisorError, TargetError: then the next drill tries again."""
        _clear(self._host, self._descriptor)
        _path(self._host, self.place.name).unlink(missing_ok=True)


def left_over(host: Host, wanted: Collection[str] | None = None) -> Iterator[tuple[str, str]]:
    """Takes away what killed drills left on this host; tells of each whose it was, and what was done.

    `wanted`: of these guests alone, names or UUIDs. A drill that goes on is left alone. Raises HypervisorError,
    TargetError once all were tried: what could not be taken away is left for the next try.
    """
    trouble: list[HypervisorError | TargetError] = []
    for path in _written(host):
        try:
            guest = _take_away(host, path, wanted)
        except (HypervisorError, TargetError) as error:
            trouble.append(error)
            continue
        if guest:
            yield guest, "removed the throw-away guest and files of a drill that was killed"
    if trouble:
        raise trouble[0]


def drilled(host: Host) -> set[str]:
    """The guests, names and UUIDs, of which a drill goes on or was killed on this host."""
    places = []
    for path in _written(host):
        with contextlib.suppress(OSError):
            places.append(_parsed(path.read_bytes()))
    return {text for place in places if place for text in (place.guest, place.origin) if text}


def _written(host: Host) -> list[Path]:
    folder = Path(host.places.state_dir) / FOLDER
    return sorted(folder.glob("*.json")) if folder.is_dir() else []


def _take_away(host: Host, path: Path, wanted: Collection[str] | None) -> str | None:
    """What one killed drill left; gives whose it was, None where it is not wanted, goes on, or left nothing."""
    descriptor = _locked(path)
    if descriptor is None:
        return None
    try:
        place = _read(descriptor)
        if wanted is not None and not (place and place.is_of(wanted)):
            return None
        guest = _clear(host, descriptor)
        path.unlink(missing_ok=True)
        return guest
    finally:
        os.close(descriptor)


def _clear(host: Host, descriptor: int) -> str | None:
    """What a drill wrote down; the guest first, as it holds the rest. Gives whose drill it was."""
    place = _read(descriptor)
    if place is None:
        return None
    end(host.connection, place.name)
    if place.uuid:
        remove_state(host.places.domain_folders, place.uuid)
    folder = Path(place.folder)
    if folder.name == place.name:  # else somebody wrote it who is not us
        with told(folder), contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
        with contextlib.suppress(OSError):  # others drill
            folder.parent.rmdir()
    return place.guest


def _read(descriptor: int) -> Place | None:
    """None where nothing is written down, or not to the end: then nothing is there yet."""
    return _parsed(os.pread(descriptor, 1 << 16, 0))


def _parsed(data: bytes) -> Place | None:
    try:
        found = Place(**json.loads(data))
    except (ValueError, TypeError):
        return None
    return found if all(isinstance(value, str) for value in asdict(found).values()) else None


def _path(host: Host, name: str) -> Path:
    return Path(host.places.state_dir) / FOLDER / f"{name}.json"


def _locked(path: Path) -> int | None:
    """The file, made if need be, and locked; None where another process holds it. Raises TargetError."""
    with told(path):
        path.parent.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.exists(path) and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor
            except BlockingIOError:
                os.close(descriptor)
                return None
            except FileNotFoundError:
                pass
            os.close(descriptor)  # of a drill that has just ended: its file is gone


def _make(folder: Path) -> None:
    """The folder: QEMU's user passes to what is opened to it, and nobody lists it. Raises TargetError."""
    try:
        shutil.rmtree(folder, ignore_errors=True)  # of a drill whose file is lost
        for each in (*reversed(folder.parents), folder):
            if not each.is_dir():
                each.mkdir()
                each.chmod(_PASSABLE)
    except OSError as error:
        raise TargetError(f"cannot make the folder {folder}: {error.strerror}", "run this as root") from None
