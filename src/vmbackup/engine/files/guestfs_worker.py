"""The process that looks into guests' file systems: what it reads may be made to attack it.

Started by guest_process.py in namespaces of its own, without network and with nothing of our environment; it gives up
root before it opens a disk. Requests are lines of JSON on a socket, answers too; what is large comes through a pipe
that is handed over beside the answer. Names are UTF-8, other bytes as Python's surrogates.
"""

import contextlib
import ctypes
import json
import os
import resource
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

from vmbackup.engine.files.guestfs import Guestfs, GuestfsError, Stat, load_library

_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38  # linux/prctl.h
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND = 1, 2, 4, 32, 4096  # linux/mount.h
# Bytes that a replayed journal and the appliance's own notes may take here: nothing is written to a guest's disk.
_MOST_WRITTEN = 2 << 30
_BATCH = 1000  # entries of a folder that are asked for together
_TAGS = {
    "type": b"TYPE",
    "label": b"LABEL",
    "uuid": b"UUID",
    "partuuid": b"PART_ENTRY_UUID",
    "partlabel": b"PART_ENTRY_NAME",
}
_LINK = 0o120000
_FORMAT = 0o170000


def text_of(name: bytes) -> str:
    """A name as JSON can hold it."""
    return name.decode("utf-8", "surrogateescape")


def bytes_of(name: str) -> bytes:
    """The name again."""
    return name.encode("utf-8", "surrogateescape")


def shut_in(appliance: str | None, inside: str | None, identity: dict[str, Any] | None) -> None:
    """Shows the appliance (in a folder that only root may pass) inside; then, of root, becomes nobody for good."""
    libc = ctypes.CDLL(None, use_errno=True)
    if identity is not None:
        if appliance is not None and inside is not None:
            flags = _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV
            for what in (_MS_BIND, flags | _MS_REMOUNT):
                if libc.mount(os.fsencode(appliance), os.fsencode(inside), None, what, None):
                    raise OSError(ctypes.get_errno(), "cannot show the appliance", inside)
        os.setgroups(identity["groups"])
        os.setresgid(*[identity["gid"]] * 3)
        os.setresuid(*[identity["uid"]] * 3)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)  # or /proc/self/fd is root's, and libguestfs may not write to our pipe
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MOST_WRITTEN, _MOST_WRITTEN))
    os.umask(0o077)


def entry(name: bytes, stat: Stat, link: bytes) -> dict[str, Any]:
    """What is told of a file."""
    told = {field: getattr(stat, field) for field in ("mode", "uid", "gid", "size", "mtime", "nlink")}
    return {"name": text_of(name), "target": text_of(link), **told}


class Worker:
    """Answers requests, one after the other."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._lines = control.makefile("rb")
        self._guest: Guestfs | None = None

    def run(self) -> None:
        """Until the other side is gone."""
        while line := self._lines.readline():
            request = json.loads(line)
            do: Callable[..., Any] = getattr(self, f"do_{request.pop('do')}")
            try:
                answer = {"ok": do(**request)}
            except GuestfsError as error:
                answer = {"error": str(error), "errno": error.errno}
            except OSError as error:
                answer = {"error": str(error), "errno": 0}
            self._answer(answer)

    def _answer(self, answer: dict[str, Any]) -> None:
        self._control.sendall(json.dumps(answer).encode() + b"\n")

    @contextlib.contextmanager
    def _pipe(self) -> Iterator[int]:
        """What is written to the descriptor is read there, until it is closed."""
        reader, writer = os.pipe()
        with contextlib.closing(os.fdopen(writer, "wb")) as file:
            socket.send_fds(self._control, [b'{"ok": "data"}\n'], [reader])
            os.close(reader)
            yield file.fileno()

    @property
    def guest(self) -> Guestfs:
        """The appliance, once it is started."""
        if self._guest is None:
            raise GuestfsError("it was not started")
        return self._guest

    def do_start(self, **given: Any) -> None:
        """Disks are added in this order: /dev/sda, /dev/sdb, ..."""
        library = load_library()
        shut_in(given["appliance"], given["inside"], given["identity"])
        shown = given["inside"] if given["identity"] and given["appliance"] else given["appliance"]
        self._guest = Guestfs(library, given["work"], shown, emulated=given["emulated"])
        for export in given["exports"]:
            self._guest.add_nbd(given["socket"], export)
        self._guest.launch()

    def do_filesystems(self) -> list[dict[str, Any]]:
        """All that can be told before anything is mounted."""
        found = map(self._filesystem, self.guest.devices())
        return [fs for fs in found if fs is not None]

    def _filesystem(self, device: bytes) -> dict[str, Any] | None:
        told: dict[bytes, bytes] = {}
        size = 0
        with contextlib.suppress(GuestfsError):  # a volume that lacks a disk
            size = self.guest.size(device)
            told = self.guest.blkid(device)
        if b"TYPE" not in told and b"PTTYPE" in told:  # holds partitions, which are told of themselves
            return None
        tags = {name: text_of(told.get(tag, b"")) for name, tag in _TAGS.items()}
        return {"mountable": text_of(device), "size": size, **tags, "type": tags["type"] or "unknown"}

    def do_mount(self, options: str, mountable: str, point: str) -> None:
        """Read-only, if the options say so."""
        self.guest.mount(bytes_of(options), bytes_of(mountable), bytes_of(point))

    def do_unmount(self) -> None:
        """All that is mounted."""
        self.guest.unmount_all()

    def do_stat(self, path: str) -> dict[str, Any]:
        """Of a path whose links were followed."""
        return entry(b"", self.guest.lstat(bytes_of(path)), b"")

    def do_real_path(self, path: str) -> str:
        """Symbolic links followed, within the guest."""
        return text_of(self.guest.real_path(bytes_of(path)))

    def do_written_path(self, path: str) -> str:
        """As it is written in a file system that takes upper and lower case for one."""
        return text_of(self.guest.written_path(bytes_of(path)))

    def do_read(self, path: str, most: int) -> str:
        """A small file of text."""
        if self.guest.lstat(bytes_of(path)).size > most:
            raise GuestfsError(f"{path} is too large")
        return text_of(self.guest.read(bytes_of(path)))

    def do_list(self, path: str) -> None:
        """A line of JSON for each entry of a folder."""
        folder = bytes_of(path)
        names = self.guest.names(folder)
        with self._pipe() as pipe, os.fdopen(os.dup(pipe), "wb") as lines:
            for start in range(0, len(names), _BATCH):
                batch = names[start : start + _BATCH]
                stats = self.guest.lstats(folder, batch)
                linked = [n for n, stat in zip(batch, stats, strict=True) if stat.mode & _FORMAT == _LINK]
                targets = dict(zip(linked, self.guest.links(folder, linked), strict=True)) if linked else {}
                for name, stat in zip(batch, stats, strict=True):
                    lines.write(json.dumps(entry(name, stat, targets.get(name, b""))).encode() + b"\n")

    def do_download(self, path: str) -> None:
        """A file's contents."""
        with self._pipe() as pipe:
            self.guest.download(bytes_of(path), f"/dev/fd/{pipe}")

    def do_kernel_errors(self) -> str:
        """Lines."""
        return text_of(self.guest.kernel_errors())

    def do_tar(self, path: str) -> None:
        """All below a folder."""
        with self._pipe() as pipe:
            self.guest.tar(bytes_of(path), f"/dev/fd/{pipe}")


def main(descriptor: str) -> None:
    """Answers requests on an open socket."""
    with socket.socket(fileno=int(descriptor)) as control, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        Worker(control).run()


if __name__ == "__main__":
    main(sys.argv[1])
