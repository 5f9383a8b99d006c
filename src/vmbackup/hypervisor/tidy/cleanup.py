"""The parts of putting a domain right that a failing run, a run after a dead one, and purge share.

Every function takes a virDomain and may be called when there is nothing to do.
"""

import os
import time
from collections.abc import Iterable, Sequence
from typing import Any

from vmbackup.errors import HypervisorError
from vmbackup.hypervisor import _libvirt as lv
from vmbackup.hypervisor.domains import PAUSED_BY_IO_ERROR
from vmbackup.hypervisor.failures import code_of, text_of
from vmbackup.hypervisor.live.jobxml import job_socket
from vmbackup.hypervisor.remote.remote import is_place
from vmbackup.nbd import NbdClient, NbdError

# Seconds an aborted job has to end: it took at most 42 ms on an idle machine.
END_TIMEOUT = 60.0
_POLL = 0.02
# Seconds without a job after which a dead caller's backupBegin will not come any more: libvirtd takes it up in
# milliseconds, and a second holds on a busy machine too.
_QUIET = 1.0
_BEGINNING = -1
# Seconds from the job's XML to its exports, with much to spare: a begin takes under 0.1.
_FAR = 3.0


def active_job_socket(domain: Any) -> str | None:
    """The socket of the domain's backup job; None where it has no such job, "" for a push job."""
    try:
        return job_socket(domain.backupGetXMLDesc(0))
    except lv.binding().libvirtError as error:
        if code_of(error) in (lv.NO_DOMAIN_BACKUP, lv.NO_DOMAIN, lv.OPERATION_INVALID):
            return None
        raise


def job_type(domain: Any) -> int:
    """virDomainJobType; 0 where nothing runs or the domain is off, _BEGINNING while a backup is just being begun."""
    try:
        return int(domain.jobInfo()[0])
    except lv.binding().libvirtError as error:
        if code_of(error) in (lv.OPERATION_INVALID, lv.NO_DOMAIN):
            return 0
        if code_of(error) == lv.INTERNAL_ERROR and "backup job data missing" in text_of(error):
            return _BEGINNING
        raise


def running_bytes(domain: Any) -> int:
    """The sizes of the job's disks, as libvirt counts those whose backup neither ended nor was told to end.

    libvirt answers between its own steps, never within one: once it has told QEMU to end a disk's backup, that
    disk is missing here. So a full count that was asked for after a read proves that read. It is at least the sum
    of the disks' sizes; QEMU counts a last piece of 64 KiB as whole until the guest overwrites it.
    """
    return int(domain.jobStats(0).get("disk_temp_total", 0))


def wait_for_begin(domain: Any, socket: str, exports: Sequence[str]) -> None:
    """Returns when a backupBegin whose caller has died has come to its end, well or not.

    libvirtd goes on with it, and nothing may be touched meanwhile: its scratch files are needed, and a begin that
    fails beside other calls on the domain crashes libvirtd (before 10.8). It is over when the exports, its last
    step, can be opened; or it never came, or has failed, when the domain has had no job for _QUIET seconds. Exports of
    another machine are not tried: they have _FAR seconds to come.
    """
    deadline = time.monotonic() + END_TIMEOUT
    quiet_since = time.monotonic()
    while time.monotonic() < deadline:
        if active_job_socket(domain) == socket:
            if is_place(socket):
                time.sleep(_FAR)
                return
            if all(_opens(socket, export) for export in exports):
                time.sleep(_POLL)  # between the last export and the end of the call
                return
        elif job_type(domain) == _BEGINNING:
            quiet_since = time.monotonic()
        elif time.monotonic() - quiet_since > _QUIET:
            return
        time.sleep(_POLL)


def _opens(socket: str, export: str) -> bool:
    try:
        NbdClient.connect(socket, export, timeout=END_TIMEOUT, at_once=True).close()
    except NbdError:
        return False
    return True


def abort_job(domain: Any, socket: str) -> bool:
    """Ends the backup job on that socket, if it runs. True where it did; returns when it has ended.

    Raises HypervisorError where it does not end in END_TIMEOUT.
    """
    if active_job_socket(domain) != socket:
        return False
    try:
        domain.abortJob()
    except lv.binding().libvirtError as error:
        if code_of(error) not in (lv.OPERATION_INVALID, lv.NO_DOMAIN):
            raise
    wait_for_end(domain, socket)
    return True


def wait_for_end(domain: Any, socket: str) -> None:
    """Returns when the job on that socket is gone and another could begin. Raises HypervisorError in time."""
    deadline = time.monotonic() + END_TIMEOUT
    while active_job_socket(domain) == socket or job_type(domain) not in (0, 3, 4, 5):
        if time.monotonic() > deadline:
            raise HypervisorError(
                f"the backup job of {domain.name()} was aborted and does not end",
                "libvirt ends the jobs of all domains one after the other: look for one whose QEMU does not answer"
                " ('virsh domstats' stops at it); scratch space fills meanwhile",
            )
        time.sleep(_POLL)


def resume_if_paused_by_error(domain: Any) -> bool:
    """Lets a guest go on that QEMU paused because a write failed. True where it was paused so."""
    try:
        if tuple(domain.state()) != PAUSED_BY_IO_ERROR:
            return False
        domain.resume()
    except lv.binding().libvirtError as error:
        if code_of(error) in (lv.OPERATION_INVALID, lv.NO_DOMAIN):
            return False
        raise
    return True


def unlink_all(paths: Iterable[str]) -> list[str]:
    """Removes files (scratch, sockets) and returns those that were there. One that cannot go is left."""
    gone = []
    for path in paths:
        try:
            os.unlink(path)
            gone.append(path)
        except OSError:
            continue
    return gone


def left_of(paths: Iterable[str]) -> str | None:
    """After unlink_all: which of these could not go, in words; None where all have."""
    left = [path for path in paths if os.path.lexists(path)]
    return f"could not remove {', '.join(left)}" if left else None
