"""The processes that decode for a server: a few, each with a piece of shared memory."""

import contextlib
import logging
import mmap
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

from vmbackup.engine.serve.decoder import AREA, DONE, PLAIN_AT, READY, encode, fits
from vmbackup.repository.chunks import SealedRun
from vmbackup.repository.crypto import DATA
from vmbackup.repository.packs import aad_prefix

_log = logging.getLogger("vmbackup.serve")
_AAD_BYTES = len(aad_prefix(bytes(16), DATA))
_STOP_SECONDS = 5.0


class Decoders:
    """So many processes, from the first run on. None is waited for until it is ready; what dies is done without."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._idle: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        self._lock = threading.Lock()
        self._all: list[_Process] = []
        self._starter: threading.Thread | None = None
        self._alive = 0  # ready, and not dead
        self._closed = False

    def start(self) -> None:
        """Has them started; returns at once. May be repeated."""
        with self._lock:
            if self._starter is None:
                self._starter = threading.Thread(target=self._begin, name="decoders-start", daemon=True)
                self._starter.start()

    def decode(self, run: SealedRun, stored: memoryview) -> list[bytes] | None:
        """The plain bytes of each chunk; None where no process can tell them: none is ready, or the run has damage."""
        if self._starter is None:
            self.start()
        if not self._alive or not fits(run):
            return None
        process = self._idle.get()  # all at work: more threads would not help
        if process is None:  # all have died, or are about to end
            self._idle.put(None)
            return None
        try:
            return process.decode(run, stored)
        except OSError:
            return None
        finally:
            self._give_back(process)

    def close(self) -> None:
        """Ends the processes; none is asked any more."""
        with self._lock:
            starter, self._starter = self._starter, threading.current_thread()
        if starter is not None:
            starter.join()
        self._alive, self._closed = 0, True
        self._idle.put(None)
        for process in self._all:
            process.close()

    def _begin(self) -> None:
        try:
            self._all = [_Process() for _ in range(self._count)]
        except OSError as error:
            _log.warning("no process to decode can be started: %s", error.strerror)
        for process in self._all:
            if process.ready():
                with self._lock:
                    self._alive += 1
                self._idle.put(process)

    def _give_back(self, process: "_Process") -> None:
        if not process.asked:
            self._idle.put(process)
            return
        process.close()
        with self._lock:
            self._alive -= 1
            last = self._alive <= 0
        if not self._closed:
            _log.warning("a process that decodes has died%s", ": threads go on" if last else "")
        if last:
            self._idle.put(None)


class _Process:
    """One of them, which one thread at a time asks."""

    def __init__(self) -> None:
        self.asked = False  # and has not answered
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        memory = os.memfd_create("vmbackup-decoder")
        with theirs, contextlib.closing(os.fdopen(memory, "rb")):
            os.ftruncate(memory, AREA)
            self._map = mmap.mmap(memory, AREA)
            arguments = [str(theirs.fileno()), str(memory), str(_AAD_BYTES)]
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "vmbackup.engine.serve.decoder", *arguments],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=(theirs.fileno(), memory),
            )  # fmt: skip
        self._area = memoryview(self._map)

    def ready(self) -> bool:
        """Waits for its start; False where that fails."""
        with contextlib.suppress(OSError):
            return self._sock.recv(1) == READY
        return False

    def decode(self, run: SealedRun, stored: memoryview) -> list[bytes] | None:
        """The plain bytes of a run; None where it has damage. Raises OSError where the process has died."""
        self.asked = True
        self._area[: run.stored] = stored
        self._sock.send(encode(run))
        answer = self._sock.recv(1)
        if not answer:
            raise ConnectionResetError
        self.asked = False
        return list(self._pieces(run)) if answer == DONE else None

    def _pieces(self, run: SealedRun) -> Iterator[bytes]:
        for number in range(run.chunks):
            at = PLAIN_AT + number * run.size
            yield bytes(self._area[at : at + run.size])

    def close(self) -> None:
        """Ends it. May be repeated."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
