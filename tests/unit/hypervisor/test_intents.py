"""Intents and locks: what a later run knows of a dead one."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vmbackup.errors import HypervisorError, JobConflictError
from vmbackup.hypervisor.tidy.intents import Intent, IntentStore
from vmbackup.hypervisor.tidy.locks import DomainLock

INTENT = Intent(
    session="0" * 32, repository_id="0123abcd", uri="qemu:///system", domain_uuid="u", domain_name="web1",
    domain_id=7, pid=1, checkpoint="c", disks=("vda", "vdb"), paths={"vda": "/a"}, socket="/s",
    scratch=("/x", "/y"), scratch_bytes=5, was_running=True, frozen=True, superseded=("old",),
)  # fmt: skip


def test_an_intent_comes_back_with_its_changes(tmp_path: Path) -> None:
    """Written whole, changed by lines, read as the last change left it."""
    store = IntentStore(str(tmp_path))
    store.write(INTENT)
    assert list(store.all()) == [INTENT]
    begun = store.update(INTENT, phase="begun", frozen=False)
    assert begun == replace(INTENT, phase="begun", frozen=False)
    store.update(begun, phase="committed")
    assert store.of_domain("u") == [replace(begun, phase="committed")]
    assert store.of_domain("v") == []
    store.remove(INTENT.session)
    store.remove(INTENT.session)
    assert list(store.all()) == []


def test_a_change_that_was_cut_counts_nothing(tmp_path: Path) -> None:
    """Power was lost in the middle of an append."""
    store = IntentStore(str(tmp_path))
    store.write(INTENT)
    store.update(INTENT, phase="begun")
    (path,) = (tmp_path / "intents").iterdir()
    for _ in range(17):
        path.write_text(path.read_text()[:-1])
        assert next(store.all()).phase == "beginning"


def test_what_is_no_intent_is_left_alone(tmp_path: Path) -> None:
    """Foreign files, halves and other versions are skipped, and stay."""
    store = IntentStore(str(tmp_path))
    store.write(INTENT)
    folder = tmp_path / "intents"
    for name, text in {
        "a.json": "",
        "b.json": '{"version": 2}',
        "c.json": "[]\n",
        "d.txt": "x",
        "e.json.new": "{",
    }.items():
        (folder / name).write_text(text)
    assert list(store.all()) == [INTENT]
    assert len(list(folder.iterdir())) == 6


def test_a_state_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """One sentence and a hint, before anything is begun."""
    (tmp_path / "file").write_text("")
    with pytest.raises(HypervisorError, match="cannot be written"):
        IntentStore(str(tmp_path / "file")).write(INTENT)


def test_a_lock_is_held_once_and_names_its_holder(tmp_path: Path) -> None:
    """Also inside one process; another domain's is free; released, it can be taken again."""
    lock = DomainLock(str(tmp_path), "u", "web1")
    with pytest.raises(JobConflictError, match=f"web1 .process {os.getpid()}"):
        DomainLock(str(tmp_path), "u", "web1")
    DomainLock(str(tmp_path), "v", "web2").release()
    lock.release()
    lock.release()
    DomainLock(str(tmp_path), "u", "web1").release()


def test_a_lock_dies_with_its_holder(tmp_path: Path) -> None:
    """kill -9 frees it, and a child of the holder does not keep it."""
    code = (
        "import sys, os, subprocess, time; from vmbackup.hypervisor.tidy.locks import DomainLock;"
        f"l = DomainLock({str(tmp_path)!r}, 'u', 'web1'); c = subprocess.Popen(['sleep', '30']);"
        "print(c.pid, flush=True); time.sleep(30)"
    )
    holder = subprocess.Popen([sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout
    child = int(holder.stdout.readline())
    with pytest.raises(JobConflictError, match=f"process {holder.pid}"):
        DomainLock(str(tmp_path), "u", "web1")
    holder.kill()
    holder.wait()
    DomainLock(str(tmp_path), "u", "web1").release()
    os.kill(child, 9)
    holder.communicate()
