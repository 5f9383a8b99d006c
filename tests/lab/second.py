"""A second libvirt on the same machine, with daemons and folders of its own in a mount namespace of its own.

This machine's own version ("/"), or Debian 13's (`trixie.py`). The lab's folders have the same paths inside and
outside, so that images, scratch files and sockets mean the same to both; domains migrate between the two.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from . import machine

START_TIMEOUT, STOP_TIMEOUT = 90.0, 20.0   # seconds
# No virtlogd, no control groups, no namespaces of QEMU's own: nothing outlives the daemon but QEMU.
QEMU_CONF = {
    "stdio_handler": '"file"', "security_driver": '"none"', "cgroup_controllers": "[]", "namespaces": "[]",
    "remember_owner": "0",
}
LIBVIRTD_CONF = {"auth_unix_rw": '"none"', "unix_sock_rw_perms": '"0700"', "listen_tls": "0"}
# What libvirt keeps: here by the name in the second one's folder.
_OWN = {"run": "run/libvirt", "etc": "etc/libvirt", "lib": "var/lib/libvirt", "log": "var/log/libvirt",
        "cache": "var/cache/libvirt"}
# $1: the root; $2: the second one's folder; $3: the lab's folder; then the command. Mounts go with its processes.
_NAMESPACE = r"""
root=${1%/}; own=$2; lab=$3; shift 3
if [ -n "$root" ]; then
    mount --bind "$root" "$root"; cd "$root"
    mount -t proc proc "$root/proc"; mount -t sysfs sysfs "$root/sys"
    mount -t tmpfs -o mode=755 dev "$root/dev"; mkdir -m 755 "$root/dev/pts"; mkdir -m 1777 "$root/dev/shm"
    for node in null:3 zero:5 full:7 random:8 urandom:9; do
        mknod -m 666 "$root/dev/${node%:*}" c 1 "${node#*:}"
    done
    mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts "$root/dev/pts"
    ln -s pts/ptmx "$root/dev/ptmx"; ln -s /proc/self/fd "$root/dev/fd"
    mkdir -p "$root$lab"; mount --bind "$lab" "$root$lab"
fi
for pair in $OWN; do
    for top in "$root" ${root:+""}; do   # for programs of this machine that run beside it, too
        mkdir -p "$top/${pair#*:}"; mount --bind "$own/${pair%:*}" "$top/${pair#*:}"
    done
done
hostname "$NAME"
exec chroot "${root:-/}" "$@"
"""
# open_tree(2), with a copy of what is mounted there; move_mount(2) puts it on a folder of the namespace it runs in.
_OPEN_TREE, _HERE, _CLONE = 428, -100, 1
_MOVE_MOUNT = """
import ctypes, os, sys
if ctypes.CDLL(None, use_errno=True).syscall(429, int(sys.argv[1]), b"", -100, os.fsencode(sys.argv[2]), 4):
    sys.exit(os.strerror(ctypes.get_errno()))
"""


class SecondLibvirt:
    """Runs from entering to leaving, with all its domains. `folder` is an empty one of the lab, of a short path.

    Its host is called as the folder. `libvirtd` and `qemu` are more lines of libvirtd.conf and qemu.conf, values as
    they stand there; `arguments` the daemon's.
    """

    def __init__(
        self, folder: Path, root: Path = Path("/"), *, libvirtd: Mapping[str, str] | None = None,
        qemu: Mapping[str, str] | None = None, arguments: Sequence[str] = (),
    ) -> None:
        self.folder, self._root, self._arguments = folder, root, arguments
        self.uri = f"qemu+unix:///system?socket={folder}/run/libvirt-sock"
        self.connection: Any = None
        self._daemon: subprocess.Popen[bytes] | None = None
        for name in _OWN:
            (folder / name).mkdir(mode=0o755)
        (folder / "lib/qemu").mkdir(mode=0o750)
        os.chown(folder / "lib/qemu", *machine.qemu_user())
        own = {"host_uuid": f'"{uuid.uuid4()}"'}
        _write_conf(folder / "etc/libvirtd.conf", LIBVIRTD_CONF | own | dict(libvirtd or {}))
        _write_conf(folder / "etc/qemu.conf", QEMU_CONF | dict(qemu or {}))
        with contextlib.suppress(FileNotFoundError):   # what it found out of QEMU costs seconds
            shutil.copytree(root / "var/cache/libvirt", folder / "cache", dirs_exist_ok=True)

    @property
    def domain_folders(self) -> str:
        """Its /var/lib/libvirt/qemu."""
        return str(self.folder / "lib/qemu")

    @property
    def run_folder(self) -> Path:
        """Its /run/libvirt."""
        return self.folder / "run"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.folder.glob("run/qemu/*.pid"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(file.read_text()), signal.SIGKILL)
        if self.connection is not None:
            self.connection.close()
        self.stop_daemon()
        shutil.rmtree(self.folder)

    def start(self) -> None:
        """Starts its daemon, also after `stop_daemon`; the domains that run are found again."""
        import libvirt

        libvirt.registerErrorHandler(lambda *_: None, None)
        with (self.folder / "libvirtd.log").open("ab") as log:
            self._daemon = subprocess.Popen(
                self._inside("/usr/sbin/libvirtd", "--pid-file", f"{self.folder}/libvirtd.pid", *self._arguments),
                env=self._environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                self.connection = libvirt.open(self.uri)
                return
            except libvirt.libvirtError:
                if self._daemon.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self.folder / "libvirtd.log").read_text()[-2000:]) from None
                time.sleep(0.05)

    def stop_daemon(self) -> None:
        """Ends the daemon; its domains run on."""
        if self._daemon is None:
            return
        self._daemon.terminate()
        try:
            self._daemon.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._daemon.kill()
            self._daemon.wait()
        self._daemon = None

    def run(self, *command: str) -> str:
        """Runs a program of its system (qemu-img of its version), with its folders; gives what that says."""
        return subprocess.run(self._inside(*command), env=self._environment(), check=True, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True).stdout

    @property
    def beside(self) -> list[str]:
        """What goes before a command of this machine that shall run on this host: its libvirt is qemu:///system."""
        assert self._daemon is not None
        return ["nsenter", f"--target={self._daemon.pid}", "--mount", "--uts"]

    @contextlib.contextmanager
    def sees(self, folder: Path) -> Iterator[None]:
        """Inside, what was mounted on a folder of the lab after its start is there for it and its QEMUs too."""
        tree = ctypes.CDLL(None, use_errno=True).syscall(_OPEN_TREE, _HERE, os.fsencode(folder), _CLONE)
        if tree < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))
        place = f"{str(self._root).rstrip('/')}{folder}"
        try:
            subprocess.run([*self.beside, sys.executable, "-c", _MOVE_MOUNT, str(tree), place], check=True,
                           pass_fds=(tree,))
        finally:
            os.close(tree)
        try:
            yield
        finally:
            subprocess.run([*self.beside, "umount", place], check=True)

    def _inside(self, *command: str) -> list[str]:
        return ["unshare", "--mount", "--uts", "--propagation", "private", "sh", "-euc", _NAMESPACE, "second",
                str(self._root), str(self.folder), str(machine.LAB_DIR), *command]

    def _environment(self) -> dict[str, str]:
        return {"LC_ALL": "C.UTF-8", "HOME": "/root", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "NAME": self.folder.name, "OWN": " ".join(f"{name}:{place}" for name, place in _OWN.items())}


def _write_conf(path: Path, values: Mapping[str, str]) -> None:
    path.write_text("".join(f"{name} = {value}\n" for name, value in values.items()))
