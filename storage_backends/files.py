"""Files that appear whole and durable, or not at all: what the local store is made of."""

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
import stat

TEMPORARY_PREFIX = ".tmp-"
FILE_MODE = 0o600
FOLDER_MODE = 0o700

# Offsets, lengths and addresses that every disk's O_DIRECT takes, in bytes.
_DIRECT_ALIGNMENT = 4096
# Bytes. Below, a buffered write costs no more CPU, and O_DIRECT waits for the disk twice (write, then fsync).
_DIRECT_MIN = 1 << 20
_COMPARE_STEP = 1 << 20  # bytes read at a time to compare

_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}  # vfat, SMB without them, FUSE
_RENAME_NOREPLACE = 1  # renameat2(2)
_AT_FDCWD = -100


def create_once(folder: str, name: str, data: memoryview) -> bool:
    """Make file `name` in `folder`, whole and durable; False, and nothing changed, where the name is taken.

    The bytes are on disk before the name exists, and the name is on disk when this returns.
    Raises OSError; no temporary file is left.
    """
    temporary = os.path.join(folder, TEMPORARY_PREFIX + secrets.token_hex(8))
    try:
        _write_durably(temporary, data)
        placed = _place(temporary, os.path.join(folder, name))
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    if placed:
        sync_folder(folder)
    return placed


def holds_durably(folder: str, name: str, data: memoryview) -> bool:
    """Tell whether the file holds just these bytes; if so they are durable when this returns.

    Whoever made the file may not have synced its folder yet, so that is done here. Raises OSError.
    """
    try:
        fd = open_regular(os.path.join(folder, name))
    except IsADirectoryError:
        return False
    try:
        if os.fstat(fd).st_size != data.nbytes:
            return False
        for start in range(0, data.nbytes, _COMPARE_STEP):
            piece = data[start : start + _COMPARE_STEP]
            if os.pread(fd, piece.nbytes, start) != piece:
                return False
        os.fsync(fd)
    finally:
        os.close(fd)
    sync_folder(folder)
    return True


def open_regular(path: str) -> int:
    """Open a regular file for reading; IsADirectoryError for anything else that stands there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a symbolic link, a socket
            raise IsADirectoryError(errno.EISDIR, "not a regular file", path) from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise IsADirectoryError(errno.EISDIR, "not a regular file", path)
    return fd


def make_folder(path: str) -> None:
    """Make a folder whose parent exists, or accept the one there; its name is durable when this returns."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, FOLDER_MODE)
    sync_folder(os.path.dirname(path))


def sync_folder(path: str) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that syncs names by itself (SMB)
            raise
    finally:
        os.close(fd)


def _write_durably(path: str, data: memoryview) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        done = _write_direct(fd, data)
        while done < data.nbytes:
            done += os.write(fd, data[done:])
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_direct(fd: int, data: memoryview) -> int:
    """Write the whole blocks of a big page-aligned buffer past the page cache; return the bytes written.

    0 where the buffer is small or not aligned, or the file system refuses: the caller writes the rest.
    """
    whole_blocks = data.nbytes - data.nbytes % _DIRECT_ALIGNMENT
    if whole_blocks < _DIRECT_MIN or not _is_aligned(data):
        return 0
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    done = 0
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
        while done < whole_blocks and done % _DIRECT_ALIGNMENT == 0:
            done += os.write(fd, data[done:whole_blocks])
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
    return done


def _is_aligned(data: memoryview) -> bool:
    if data.readonly:  # its address cannot be had, and bytes objects are never aligned
        return False
    return ctypes.addressof(ctypes.c_char.from_buffer(data)) % _DIRECT_ALIGNMENT == 0


def _place(temporary: str, target: str) -> bool:
    """Give the file its name unless that is taken; False if it is."""
    try:
        os.link(temporary, target, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _rename_without_replacing(temporary, target)
    return True


def _rename_without_replacing(source: str, target: str) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE) == 0:
        return True
    code = ctypes.get_errno()
    if code == errno.EEXIST:
        return False
    raise OSError(code, f"neither link nor rename without replacing: {os.strerror(code)}", target)
