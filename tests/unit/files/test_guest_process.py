"""The conversation with the confined process stays in step, though what it sent was of no use."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading

import pytest

from vmbackup.engine.files.guest_process import GuestProcess
from vmbackup.errors import GuestFilesError


def worker(theirs: socket.socket) -> None:
    """Answers a request for data, tells at its end that it failed, and answers the next request."""
    lines = theirs.makefile("rb")
    lines.readline()
    reader, writer = os.pipe()
    socket.send_fds(theirs, [b'{"ok": "data"}\n'], [reader])
    os.close(reader)
    os.write(writer, b"half")
    os.close(writer)
    theirs.sendall(b'{"error": "tar_out: it failed", "errno": 5}\n')
    request = json.loads(lines.readline())
    theirs.sendall(json.dumps({"ok": request["path"]}).encode() + b"\n")


def test_an_error_here_leaves_no_answer_behind() -> None:
    process = GuestProcess.__new__(GuestProcess)
    process._control, theirs = socket.socketpair()
    process._buffer, process._descriptors = b"", []
    with tempfile.TemporaryFile() as process._log, theirs, process._control:
        at_work = threading.Thread(target=worker, args=(theirs,))
        at_work.start()
        with pytest.raises(GuestFilesError, match="it was cut"), process.data("tar", "/etc") as data:
            assert data.read() == b"half"
            raise GuestFilesError("it was cut")
        assert process.ask("real_path", path="/srv") == "/srv"
        at_work.join()
