"""A real object store: Ceph's gateway from Debian's packages, unpacked and not installed, with its data in memory.

Needs no root. The packages (about 80 MB) are fetched once, by apt, into the lab's cache.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from . import machine
from .certificate import make_certificate

PACKAGES = (
    "radosgw ceph-mon ceph-osd ceph-base ceph-common librados2 librgw2 libradosstriper1 librbd1 libcephfs2 "
    "libboost-thread1.74.0 libboost-context1.74.0 libboost-filesystem1.74.0 libboost-iostreams1.74.0 libfmt9 "
    "libtcmalloc-minimal4 libgoogle-perftools4 liblua5.3-0 liboath0 librabbitmq4 libsnappy1v5 libleveldb1d libfuse2 "
    # what a Debian without servers lacks of their libraries
    "libaio1 libcurl3-gnutls libnghttp2-14 libpsl5 librtmp1 libssh2-1 libbrotli1 libldap-2.5-0 libsasl2-2 libicu72 "
    "libibverbs1 librdmacm1 libnl-3-200 libnl-route-3-200 libpmem1 libndctl6 libdaxctl1 libkmod2 libexpat1"
).split()
START_TIMEOUT = 60.0   # seconds; it takes one to three
MEMORY = 4 << 30       # bytes of objects at most
USERS = {"vmbackup": ("AKTEST", "SKTEST123456"), "other": ("AKOTHER", "SKOTHER123456")}
"""Two customers of the store: access key and secret key."""

CONFIG = """\
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{mon_port}/0
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind msgr1 = false
ms bind ipv6 = false
keyring = {dir}/keyring
run dir = {dir}
log file = {dir}/$name.log
admin socket = {dir}/$name.asok
plugin dir = {lib}/ceph
erasure code dir = {lib}/ceph/erasure-code
osd class dir = {lib}/rados-classes
osd class load list = *
osd class default list = *
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
auth allow insecure global id reclaim = false
paxos propose interval = 0.05
paxos min wait = 0.02
[mon]
mon data = {dir}/mon
mon cluster log to file = false
[osd]
osd objectstore = memstore
memstore device bytes = {memory}
osd data = {dir}/osd
[client]
rgw frontends = beast endpoint=127.0.0.1:{http} ssl_endpoint=127.0.0.1:{https} {certificate}
rgw enable gc threads = false
"""


class CephError(Exception):
    """The gateway cannot be had here; the message says what lacks or failed."""


class Ceph:
    """A running gateway at `http` and `https`, with what it needs in a folder of its own. A context manager."""

    def __init__(self) -> None:
        self.http = self.https = ""
        self.ca_file = Path()
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        root = _unpacked()
        self._dir = Path(tempfile.mkdtemp(prefix="vmbackup-ceph-"))
        try:
            self._start(root)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):   # the data are thrown away: no need of an orderly end
            process.kill()
            process.wait()
        shutil.rmtree(self._dir)

    def client(self, user: str = "vmbackup", **options: Any) -> Any:
        """boto3's own client, for what tests do behind the store's back. The caller closes it."""
        return plain_client(self.http, *USERS[user], **options)

    def _start(self, root: Path) -> None:
        [lib] = (root / "usr/lib").glob("*-linux-gnu")
        paths = f"{lib}:{lib}/ceph:{root}/lib/{lib.name}"
        self._environment = {**os.environ, "PATH": f"{root}/usr/bin:{os.environ['PATH']}", "LD_LIBRARY_PATH": paths}
        self.ca_file, cert, key = make_certificate(self._dir)
        http, https, mon = _free_ports(3)
        self.http, self.https = f"http://127.0.0.1:{http}", f"https://localhost:{https}"
        fsid = str(uuid.uuid4())
        self._conf = ("-c", f"{self._dir}/ceph.conf")
        Path(self._conf[1]).write_text(CONFIG.format(
            fsid=fsid, mon_port=mon, dir=self._dir, lib=lib, http=http, https=https, memory=MEMORY,
            certificate=f"ssl_certificate={cert} ssl_private_key={key}"))
        for name in ("mon", "osd"):
            (self._dir / name).mkdir()
        self._make_cluster(fsid, mon)
        self._daemon("ceph-mon", "-i", "a")
        self._daemon("ceph-osd", "-i", "0")
        self._daemon("radosgw", "-n", "client.admin")
        wait(lambda: answers(self.http), START_TIMEOUT, self._told)
        for name, (access_key, secret_key) in USERS.items():
            self._run("radosgw-admin", *self._conf, "user", "create", f"--uid={name}", f"--display-name={name}",
                      f"--access-key={access_key}", f"--secret-key={secret_key}")

    def _make_cluster(self, fsid: str, mon_port: int) -> None:
        keyring, monmap, osdmap = (str(self._dir / name) for name in ("keyring", "monmap", "osdmap"))
        everything = ["--cap", "mon", "allow *", "--cap", "osd", "allow *"]
        self._run("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        for name in ("client.admin", "osd.0"):
            self._run("ceph-authtool", keyring, "--gen-key", "-n", name, *everything)
        self._run("monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a",
                  f"[v2:127.0.0.1:{mon_port}]", monmap)
        self._run("osdmaptool", *self._conf, "--createsimple", "1", "--clobber", osdmap)
        self._run("ceph-mon", *self._conf, "--mkfs", "-i", "a", "--monmap", monmap, "--osdmap", osdmap,
                  "--keyring", keyring)
        self._run("ceph-osd", *self._conf, "-i", "0", "--mkfs", "--no-mon-config", "--osd-uuid", str(uuid.uuid4()))

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, check=False, timeout=START_TIMEOUT)
        if done.returncode:
            tail = done.stdout.decode(errors="replace").strip().splitlines()[-3:]
            raise CephError(f"`{' '.join(command)[:150]}` failed: {'; '.join(tail)}")

    def _daemon(self, *command: str) -> None:
        log = (self._dir / f"{command[0]}.out").open("wb")
        with log:
            self._processes.append(subprocess.Popen(
                # dies with the tests, however they end
                ["setpriv", "--pdeathsig", "KILL", *command, *self._conf, "-f"],
                env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log))

    def _told(self) -> str:
        tails = [path.read_text(errors="replace")[-300:] for path in self._dir.glob("*.out")]
        return f"Ceph's gateway does not answer: {' '.join(' '.join(tails).split())}"


def plain_client(endpoint: str, access_key: str, secret_key: str, **options: Any) -> Any:
    """A client of boto3 that the store under test has no part in. The caller closes it."""
    import boto3
    from botocore.config import Config

    config = Config(signature_version="s3v4", s3={"addressing_style": "path", "payload_signing_enabled": True},
                    request_checksum_calculation="when_required", response_checksum_validation="when_required",
                    max_pool_connections=20)
    session = boto3.session.Session(aws_access_key_id=access_key, aws_secret_access_key=secret_key,
                                    region_name="us-east-1")
    return session.client("s3", endpoint_url=endpoint, config=config, **options)


def remove_bucket(client: Any, bucket: str) -> None:
    """Deletes a bucket with every version in it."""
    for page in client.get_paginator("list_object_versions").paginate(Bucket=bucket):
        for item in [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]:
            client.delete_object(Bucket=bucket, Key=item["Key"], VersionId=item["VersionId"])
    client.delete_bucket(Bucket=bucket)


def answers(url: str) -> bool:
    """True if a server speaks HTTP there, whatever it says."""
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except OSError:
        return False
    return True


def wait(condition: Callable[[], bool], timeout: float, complaint: Callable[[], str]) -> None:
    """Waits until `condition` holds. Raises CephError with the complaint."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise CephError(complaint())
        time.sleep(0.05)


def _free_ports(count: int) -> list[int]:
    with_sockets = [socket.socket() for _ in range(count)]
    for each in with_sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in with_sockets]
    for each in with_sockets:
        each.close()
    return ports


def _unpacked() -> Path:
    """The folder with Ceph in the lab's cache; filled if there is none."""
    cache = _cache_dir()
    folder = cache / f"ceph-{hashlib.sha256(' '.join(PACKAGES).encode()).hexdigest()[:8]}"
    with (cache / "ceph.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)   # a second run waits for the first one's download
        if not folder.is_dir():
            for old in cache.glob("ceph-*"):
                shutil.rmtree(old, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=cache, prefix="ceph-making-") as making:
                _unpack(Path(making))
                Path(making, "root").rename(folder)
    return folder


def _cache_dir() -> Path:
    """The lab's cache; for who may not write there, one of his own."""
    folder = machine.CACHE_DIR
    if os.geteuid() != 0 and not os.access(folder, os.W_OK):
        folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vmbackup-lab"
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    return folder


def _unpack(making: Path) -> None:
    if not all(shutil.which(program) for program in ("apt-get", "dpkg", "setpriv")):
        raise CephError("Ceph's gateway for the tests comes as Debian packages: apt-get, dpkg and setpriv are needed")
    debs, root = making / "debs", making / "root"
    debs.mkdir()
    root.mkdir()
    download = ["apt-get", "-q", "download", *PACKAGES]
    done = subprocess.run(download, cwd=debs, capture_output=True, text=True, check=False)
    if done.returncode and os.geteuid() == 0:   # the lists are absent or too old
        subprocess.run(["apt-get", "update", "-q"], capture_output=True, check=False)
        done = subprocess.run(download, cwd=debs, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CephError(f"`apt-get download` of Ceph failed: {' '.join(done.stderr.split())[-300:]}")
    for deb in sorted(debs.glob("*.deb")):
        subprocess.run(["dpkg", "-x", deb, root], check=True)
