"""libguestfs by ctypes: its C interface is stable, its Python module exists for the distribution's own Python only.

Runs in the confined process (guestfs_worker.py) alone. Names are bytes, as file systems have them. What the library
allocates is not freed: the process is short-lived.
"""

import ctypes
import ctypes.util
import os
from collections.abc import Sequence
from typing import Any

_INT64 = ctypes.c_int64
_POINTER = ctypes.c_void_p
_STRINGS = ctypes.POINTER(ctypes.c_char_p)


class GuestfsError(Exception):
    """The library refused or failed; `errno` is that of the appliance's kernel, 0 where it is none."""

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


class _DriveOptions(ctypes.Structure):
    """`struct guestfs_add_drive_opts_argv` up to what is used; the mask tells what that is."""

    _fields_ = (
        ("bitmask", ctypes.c_uint64),
        ("readonly", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("iface", ctypes.c_char_p),
        ("name", ctypes.c_char_p),
        ("label", ctypes.c_char_p),
        ("protocol", ctypes.c_char_p),
        ("server", _STRINGS),
        ("username", ctypes.c_char_p),
        ("secret", ctypes.c_char_p),
        ("cachemode", ctypes.c_char_p),
        ("discard", ctypes.c_char_p),
        ("copyonread", ctypes.c_int),
        ("blocksize", ctypes.c_int),
    )


_READONLY, _FORMAT, _PROTOCOL, _SERVER = 1 << 0, 1 << 1, 1 << 5, 1 << 6

STAT_FIELDS = (
    *("dev", "ino", "mode", "nlink", "uid", "gid", "rdev", "size", "blksize", "blocks", "atime", "atime_nsec"),
    *("mtime", "mtime_nsec", "ctime", "ctime_nsec", "spare1", "spare2", "spare3", "spare4", "spare5", "spare6"),
)


class Stat(ctypes.Structure):
    """`struct guestfs_statns`."""

    _fields_ = tuple((name, _INT64) for name in STAT_FIELDS)


class _StatList(ctypes.Structure):
    _fields_ = (("len", ctypes.c_uint32), ("val", ctypes.POINTER(Stat)))


class _Dirent(ctypes.Structure):
    _fields_ = (("ino", _INT64), ("ftyp", ctypes.c_char), ("name", ctypes.c_char_p))


_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "create_flags": (_POINTER, ()),
    "set_error_handler": (None, (_POINTER, _POINTER)),
    "last_error": (ctypes.c_char_p, ()),
    "last_errno": (ctypes.c_int, ()),
    "set_backend": (ctypes.c_int, (ctypes.c_char_p,)),
    "set_path": (ctypes.c_int, (ctypes.c_char_p,)),
    "set_tmpdir": (ctypes.c_int, (ctypes.c_char_p,)),
    "set_cachedir": (ctypes.c_int, (ctypes.c_char_p,)),
    "set_recovery_proc": (ctypes.c_int, (ctypes.c_int,)),
    "add_drive_opts_argv": (ctypes.c_int, (ctypes.c_char_p, ctypes.POINTER(_DriveOptions))),
    "launch": (ctypes.c_int, ()),
    "set_backend_setting": (ctypes.c_int, (ctypes.c_char_p, ctypes.c_char_p)),
    "list_devices": (_STRINGS, ()),
    "list_partitions": (_STRINGS, ()),
    "lvs": (_STRINGS, ()),
    "list_md_devices": (_STRINGS, ()),
    "blkid": (_STRINGS, (ctypes.c_char_p,)),
    "blockdev_getsize64": (_INT64, (ctypes.c_char_p,)),
    "mount_options": (ctypes.c_int, (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p)),
    "umount_all": (ctypes.c_int, ()),
    "lstatns": (ctypes.POINTER(Stat), (ctypes.c_char_p,)),
    "lstatnslist": (ctypes.POINTER(_StatList), (ctypes.c_char_p, _STRINGS)),
    "readlinklist": (_STRINGS, (ctypes.c_char_p, _STRINGS)),
    "ls": (_STRINGS, (ctypes.c_char_p,)),
    "realpath": (ctypes.c_char_p, (ctypes.c_char_p,)),
    "case_sensitive_path": (ctypes.c_char_p, (ctypes.c_char_p,)),
    "read_file": (_POINTER, (ctypes.c_char_p, ctypes.POINTER(ctypes.c_size_t))),
    "download": (ctypes.c_int, (ctypes.c_char_p, ctypes.c_char_p)),
    "tar_out": (ctypes.c_int, (ctypes.c_char_p, ctypes.c_char_p)),
    "debug": (ctypes.c_char_p, (ctypes.c_char_p, _STRINGS)),
    "close": (None, ()),
}
_SONAME = "libguestfs.so.0"


def load_library() -> ctypes.CDLL:
    """The library. Raises OSError where it is not installed."""
    return ctypes.CDLL(ctypes.util.find_library("guestfs") or _SONAME)


def _strings(values: Sequence[bytes]) -> Any:
    return (ctypes.c_char_p * (len(values) + 1))(*values, None)


def _listed(pointer: Any) -> list[bytes]:
    found: list[bytes] = []
    while pointer[len(found)] is not None:
        found.append(pointer[len(found)])
    return found


class Guestfs:
    """An appliance and the disks added to it. All methods raise GuestfsError."""

    def __init__(self, library: ctypes.CDLL, work: str, appliance: str | None, *, emulated: bool) -> None:
        self._library = library
        self._handle: int | None = None
        self._handle = self._call("create_flags", 0, plain=True)
        self._call("set_error_handler", None, None)  # messages are asked for, not printed
        self._call("set_backend", b"direct")
        if emulated:
            self._call("set_backend_setting", b"force_tcg", b"1")
        for name in ("set_tmpdir", "set_cachedir"):
            self._call(name, os.fsencode(work))
        if appliance is not None:
            self._call("set_path", os.fsencode(appliance))

    def _call(self, name: str, *arguments: Any, plain: bool = False) -> Any:
        function = getattr(self._library, f"guestfs_{name}")
        function.restype, types = _SIGNATURES[name]
        function.argtypes = (ctypes.c_uint,) if plain else (_POINTER, *types)
        result = function(*arguments) if plain else function(self._handle, *arguments)
        if function.restype is None:
            return None
        failed = result == -1 if function.restype in (ctypes.c_int, _INT64) else not result
        if failed and not plain and name not in ("last_error", "last_errno"):
            raise self._error(name)
        return result

    def _error(self, name: str) -> GuestfsError:
        text = self._call("last_error") or b"it failed"
        return GuestfsError(f"{name}: {text.decode(errors='replace')}", self._call("last_errno"))

    def add_nbd(self, socket: str, export: str) -> None:
        """A disk, read-only, from a server at a unix socket."""
        options = _DriveOptions(
            bitmask=_READONLY | _FORMAT | _PROTOCOL | _SERVER,
            readonly=1,
            format=b"raw",
            protocol=b"nbd",
            server=_strings([b"unix:" + os.fsencode(socket)]),
        )
        self._call("add_drive_opts_argv", export.encode(), ctypes.byref(options))

    def launch(self) -> None:
        """Starts the appliance: seconds, minutes without hardware virtualisation."""
        self._call("launch")

    def devices(self) -> list[bytes]:
        """What may hold a file system: partitions, disks without any, volumes, RAIDs.

        The library's own list_filesystems runs forty programs for five partitions: 10 s without virtualisation.
        """
        partitions = _listed(self._call("list_partitions"))
        whole = [d for d in _listed(self._call("list_devices")) if not any(p.startswith(d) for p in partitions)]
        return [*partitions, *whole, *_listed(self._call("lvs")), *_listed(self._call("list_md_devices"))]

    def blkid(self, device: bytes) -> dict[bytes, bytes]:
        """Labels and the like."""
        found = _listed(self._call("blkid", device))
        return dict(zip(found[::2], found[1::2], strict=True))

    def size(self, device: bytes) -> int:
        """In bytes."""
        return int(self._call("blockdev_getsize64", device))

    def mount(self, options: bytes, mountable: bytes, point: bytes) -> None:
        """Within the appliance."""
        self._call("mount_options", options, mountable, point)

    def unmount_all(self) -> None:
        """Within the appliance."""
        self._call("umount_all")

    def lstat(self, path: bytes) -> Stat:
        """Symbolic links are not followed."""
        return self._copy(self._call("lstatns", path).contents)

    @staticmethod
    def _copy(stat: Stat) -> Stat:
        return Stat(*(getattr(stat, name) for name in STAT_FIELDS))

    def lstats(self, folder: bytes, names: Sequence[bytes]) -> list[Stat]:
        """Of many; one that is gone has the inode -1."""
        found = self._call("lstatnslist", folder, _strings(names)).contents
        return [self._copy(found.val[i]) for i in range(found.len)]

    def links(self, folder: bytes, names: Sequence[bytes]) -> list[bytes]:
        """Where symbolic links lead; "" for what is none."""
        return _listed(self._call("readlinklist", folder, _strings(names)))

    def names(self, folder: bytes) -> list[bytes]:
        """What is in a folder, but `.` and `..`."""
        return _listed(self._call("ls", folder))

    def real_path(self, path: bytes) -> bytes:
        """Symbolic links followed, within the guest."""
        found: bytes = self._call("realpath", path)
        return found

    def written_path(self, path: bytes) -> bytes:
        """As it is written in a file system that takes upper and lower case for one."""
        found: bytes = self._call("case_sensitive_path", path)
        return found

    def read(self, path: bytes) -> bytes:
        """A small file as a whole."""
        size = ctypes.c_size_t()
        pointer = self._call("read_file", path, ctypes.byref(size))
        return ctypes.string_at(pointer, size.value)

    def download(self, path: bytes, to: str) -> None:
        """A file's contents, into a file here."""
        self._call("download", path, os.fsencode(to))

    def tar(self, folder: bytes, to: str) -> None:
        """A folder's contents as an archive, into a file here."""
        self._call("tar_out", folder, os.fsencode(to))

    def kernel_errors(self) -> bytes:
        """What the appliance's kernel has said of errors, and where it has its disks."""
        found: bytes = self._call("debug", b"sh", _strings([b"ls -l /sys/block; dmesg -t -l emerg,alert,crit,err"]))
        return found

    def close(self) -> None:
        """Ends the appliance."""
        if self._handle is not None:
            self._call("close")
            self._handle = None
