"""Where a page of docs/ is followed: folders in the place of /etc, /srv and /var, and a stand-in for systemd."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from . import machine
from .agent import Agent
from .ceph import USERS, Ceph, remove_bucket
from .pages import DOCS, Follower
from .service import STOP_TIMEOUT, free_port
from .session import FOLDER_MODE, Lab

PROGRAMS = Path(sys.executable).parent

SYSTEMCTL = """#!/bin/sh
# systemd's part for vmbackup's service, on a machine without systemd.
pid={folder}/run/pid
case "$*" in
"enable --now vmbackup")
    vmbackup --config "$VMBACKUP_CONFIG" daemon >{folder}/daemon.log 2>&1 &
    echo $! >$pid
    until test -S {folder}/run/control.sock; do kill -0 $(cat $pid) || exit 1; sleep 0.2; done ;;
*)
    echo "systemctl $*: nobody here does that" >&2
    exit 1 ;;
esac
"""
DOCTOR = """#!{python}
# `vmbackup doctor`, but for what it says of other domains of this machine, which are not the page's.
import json, subprocess, sys
told = subprocess.run(["vmbackup", "--json", "doctor"], stdout=subprocess.PIPE, text=True).stdout
checks = [check for check in json.loads(told)["checks"] if not check["subject"].startswith("{prefix}")]
print(*checks, sep="\\n")
sys.exit(not checks or any(check["status"] != "ok" for check in checks))
"""
HOST = """\
[libvirt]
scratch_dir = "{folder}/scratch"

[host]
cache_dir = "{folder}/cache"

[daemon]
state_dir = "{folder}/state"
socket = "{folder}/run/control.sock"
listen = "127.0.0.1:{port}"
"""
"""What a page leaves to the defaults, and may not be shared here with what else runs on this machine."""


class Stage:
    """A folder, a bucket and names of guests for one page. A context manager; leaves nothing."""

    def __init__(self, lab: Lab, ceph: Ceph, page: str, guests: tuple[str, ...],
                 environment: Mapping[str, str] = MappingProxyType({})) -> None:
        self._lab, self._ceph = lab, ceph
        self.folder = lab.folder / f"p{secrets.token_hex(2)}"   # short: sockets below have names of 107 bytes at most
        self.names = {guest: lab.new_name() for guest in guests}
        self.bucket = f"test-{secrets.token_hex(4)}"
        self.domains = f'domains = ["{lab.prefix}*"]'   # of a job: not what else runs on this machine
        self._page, self._more = page, environment
        self.port = free_port()

    def __enter__(self) -> Self:
        for name in ("", "etc", "images", "run", "bin", "home", "srv"):
            (self.folder / name).mkdir(mode=FOLDER_MODE)
        self._program("systemctl", SYSTEMCTL.format(folder=self.folder))
        self._program("doctor", DOCTOR.format(python=sys.executable, prefix=machine.PREFIX))
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._stop(int((self.folder / "run/pid").read_text()))
        self._remove_pools()
        with contextlib.closing(self._ceph.client()) as client, contextlib.suppress(client.exceptions.NoSuchBucket):
            remove_bucket(client, self.bucket)
        self._lab.clean_below(self.folder, self.names.values())

    @property
    def connection(self) -> Any:
        """libvirt's."""
        return self._lab.connection

    @property
    def environment(self) -> dict[str, str]:
        """Of the page's commands: the programs of this tree before others, and nothing of this user's own."""
        return {**os.environ, "PATH": f"{self.folder}/bin:{PROGRAMS}:{os.environ['PATH']}:/usr/sbin:/sbin",
                "HOME": f"{self.folder}/home", "VMBACKUP_CONFIG": f"{self.folder}/etc/config.toml", "LC_ALL": "C.UTF-8",
                **self._more}

    def agent_of(self, name: str) -> Agent:
        """The agent of a domain."""
        return Agent(self._lab.connection.lookupByName(name))

    def follower(self, exchanged: Mapping[str, str]) -> Follower:
        """Follows the page with these words exchanged too."""
        access_key, secret_key = USERS["vmbackup"]
        common = {
            "/etc/vmbackup/": f"{self.folder}/etc/",
            "/var/lib/libvirt/images": f"{self.folder}/images",
            "[daemon]\n": HOST.format(folder=self.folder, port=self.port),
            "/etc/apparmor.d/local/abstractions/libvirt-qemu": f"{self.folder}/apparmor",
            "ACCESS-KEY": access_key,
            "SECRET-KEY": secret_key,
            'provider = "hetzner:fsn1"': f'endpoint_url = "{self._ceph.http}"',
            "example-backup": self.bucket,
        }
        return Follower(DOCS / self._page, self.folder, self.environment, {**common, **exchanged}, self.names,
                        self.agent_of)

    def run(self, *command: str) -> str:
        """A command as the page's are run, for what a test prepares. What it prints."""
        done = subprocess.run(command, cwd=self.folder, env=self.environment, check=False, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}"
        return done.stdout

    def _program(self, name: str, text: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(text)
        path.chmod(0o755)

    def _stop(self, pid: int) -> None:
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.1)

    def _remove_pools(self) -> None:
        """virt-install makes a storage pool of each folder with an image."""
        for pool in self._lab.connection.listAllStoragePools():
            if (ET.fromstring(pool.XMLDesc()).findtext("target/path") or "").startswith(f"{self.folder}/"):
                if pool.isActive():
                    pool.destroy()
                pool.undefine()
