"""The programs that are compared: for each task a command line, and what is on disk when it returns."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .guest import Guest
from .measure import BenchError, Cost, measure, run

NOTHING = "nothing synced"
IMAGE_BY_QEMU = "image synced as qemu-nbd ends"


class Tool:
    """A program at work on one guest. `folder` is its own, new for each round.

    `does` names the tasks it has a method for: `full`, `increment` (of the checkpoint it has kept), `restore` (of
    the newest state it has; the image is then `restored`).
    """

    name: str
    does: Sequence[str] = ("full",)
    packages: Sequence[str] = ()

    def __init__(self, guest: Guest, folder: Path) -> None:
        self.guest = guest
        self.folder = folder
        self.restored: Path | None = None
        folder.mkdir(parents=True)

    def synced(self, task: str) -> str:
        """What is on disk when the command returns."""
        del task
        return NOTHING

    def full(self) -> Cost:
        """Reads the whole disk into a new place."""
        raise NotImplementedError

    def increment(self) -> Cost:
        """Stores what has changed."""
        raise NotImplementedError

    def restore(self) -> Cost:
        """Makes an image of what is stored."""
        raise NotImplementedError

    def tidy(self) -> None:
        """Deletes all that is stored."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Vmbackup(Tool):
    """vmbackup's command line, each time a new process."""

    name = "vmbackup"
    does = ("full", "increment", "restore")

    def __init__(self, guest: Guest, folder: Path) -> None:
        super().__init__(guest, folder)
        self._repository = folder / "repository"
        self.config = folder / "config.toml"
        scratch = guest.folder / f"scratch-{folder.name}"
        self.config.write_text(
            f'[libvirt]\nscratch_dir = "{scratch}"\n'
            f'[repositories.bench]\n{self.place()}\npassphrase_file = "{folder / "passphrase"}"\n'
            f'[host]\ncache_dir = "{folder / "cache"}"\n'
            f'[daemon]\nstate_dir = "{folder / "state"}"\nsocket = "{folder / "socket"}"\n')
        run(*self.command("init"))

    def place(self) -> str:
        """The configuration's lines that say where the repository is."""
        return f'url = "file://{self._repository}"'

    def newest(self) -> str:
        """The id of the newest restore point."""
        points: list[dict[str, str]] = json.loads(run(*self.command("list", self.guest.name, "--json")))["points"]
        return max(point["id"] for point in points)

    def command(self, *arguments: str) -> list[str]:
        """The command line: these arguments and the bench's configuration."""
        script = Path(sys.executable).with_name("vmbackup")
        program = [str(script)] if script.exists() else [sys.executable, "-m", "vmbackup.cli"]
        return [*program, "--config", str(self.config), *arguments]

    def synced(self, task: str) -> str:
        """What is on disk when the command returns."""
        return "image synced" if task == "restore" else "all synced"

    def full(self) -> Cost:
        """Reads the whole disk into a new place."""
        return self._backup("full")

    def increment(self) -> Cost:
        """Stores what has changed since."""
        return self._backup("incremental")

    def _backup(self, mode: str) -> Cost:
        cost = measure(self.command("backup", self.guest.name, "--json"), self.folder, qemu=self.guest.qemu,
                       grows=self._repository, warm=[self.guest.image])
        point = json.loads(cost.output)["points"][0]
        modes = {disk["mode"] for disk in point["disks"]}
        if modes != {mode}:
            reasons = [disk["reason"] for disk in point["disks"]]
            raise BenchError(f"vmbackup made a backup of mode {modes} where {mode} was expected: {reasons}")
        return replace(cost, seal=point["seal_seconds"])

    def restore(self) -> Cost:
        """Makes an image of the newest state."""
        target = self.folder / "restored"
        cost = measure(self.command("restore", self.guest.name, "--output", str(target), "--json"), self.folder,
                       grows=target, warm=[self._repository])
        self.restored = target / "vda.qcow2"
        return cost

    def restore_again(self) -> Cost:
        """As `restore`; the image is compared with the disk and deleted."""
        cost = self.restore()
        assert self.restored is not None
        self.guest.check(self.restored)
        shutil.rmtree(self.restored.parent)
        return cost

    def in_place(self, point: str, *options: str) -> Cost:
        """Brings the stopped guest's own disk back."""
        return measure(self.command("restore", point, "--in-place", *options, "--json"), self.folder,
                       warm=[self._repository, self.guest.image])


class GatewayVmbackup(Vmbackup):
    """The same with its repository in a bucket."""

    def __init__(self, guest: Guest, folder: Path, endpoint: str, access_key: str, secret_key: str) -> None:
        self._endpoint, self._keys = endpoint, (access_key, secret_key)
        super().__init__(guest, folder)

    def place(self) -> str:
        """The configuration's lines that say where the repository is."""
        lines = ['url = "s3://bench/prefix"', 'provider = "ceph"', f'endpoint_url = "{self._endpoint}"']
        for name, key in zip(("access", "secret"), self._keys, strict=True):
            path = self.folder / f"{name}-key"
            path.write_text(key)
            path.chmod(0o600)
            lines.append(f'{name}_key_file = "{path}"')
        return "\n".join(lines)


class Virtnbdbackup(Tool):
    """Debian's virtnbdbackup as it is by default: neither compressed nor encrypted. It leaves logs in TMPDIR."""

    name = "virtnbdbackup"
    does = ("full", "increment", "restore")
    packages = ("virtnbdbackup",)

    def __init__(self, guest: Guest, folder: Path) -> None:
        super().__init__(guest, folder)
        self._set = folder / "set"

    def synced(self, task: str) -> str:
        """What is on disk when the command returns."""
        return IMAGE_BY_QEMU if task == "restore" else NOTHING

    def full(self) -> Cost:
        """Reads the whole disk into a new place."""
        return self._backup("full")

    def increment(self) -> Cost:
        """Stores what has changed since."""
        return self._backup("inc")

    def _backup(self, level: str) -> Cost:
        command = ["virtnbdbackup", "-d", self.guest.name, "-l", level, "-o", str(self._set), "-n", "-S",
                   str(self.guest.folder), "-f", str(self.guest.socket_path())]
        return measure(command, self.folder, qemu=self.guest.qemu, grows=self._set, warm=[self.guest.image],
                       environment={"TMPDIR": str(self.folder)})

    def restore(self) -> Cost:
        """Makes an image of the newest state."""
        target = self.folder / "restored"
        target.mkdir()
        command = ["virtnbdrestore", "-i", str(self._set), "-o", str(target), "-n", "-f", str(self.folder / "s"),
                   "-L", str(self.folder / "restore.log")]
        cost = measure(command, self.folder, grows=target, warm=[self._set], environment={"TMPDIR": str(self.folder)})
        self.restored = next(path for path in target.iterdir() if path.name == self.guest.image.name)
        return cost


class QemuImg(Tool):
    """qemu-img convert into a compressed qcow2."""

    name = "qemu-img convert -c (zstd)"
    packages = ("qemu-utils",)

    def full(self) -> Cost:
        """Reads the whole disk into a new place."""
        target = self.folder / "compressed.qcow2"
        with self.guest.export() as uri:
            command = ["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", uri,
                       str(target)]
            return measure(command, self.folder, qemu=self.guest.qemu, grows=target, warm=[self.guest.image])


class Nbdcopy(Tool):
    """nbdcopy to a raw file, the least a full backup can take; back into a qcow2 image, the least for a restore."""

    name = "nbdcopy"
    does = ("full", "restore")
    packages = ("libnbd-bin", "qemu-utils")
    flags: Sequence[str] = ()

    def __init__(self, guest: Guest, folder: Path) -> None:
        super().__init__(guest, folder)
        self._raw = folder / "disk.raw"

    def synced(self, task: str) -> str:
        """What is on disk when the command returns: nbdcopy has its pages written out as it goes (sync_file_range)."""
        return IMAGE_BY_QEMU if task == "restore" else "file written out, no fsync"

    def full(self) -> Cost:
        """Reads the whole disk into a new place."""
        with self.guest.export() as uri:
            return measure(["nbdcopy", *self.flags, uri, str(self._raw)], self.folder, qemu=self.guest.qemu,
                           grows=self._raw, warm=[self.guest.image])

    def restore(self) -> Cost:
        """From the raw file; the time has qemu-img create, the start and the end of qemu-nbd in it, as the peers'."""
        target, socket = self.folder / "restored.qcow2", self.folder / "s"
        script = """set -e
            qemu-img create -q -f qcow2 "$2" "$(stat -c %s "$1")"
            qemu-nbd -f qcow2 --discard=unmap --shared=8 --socket="$3" "$2" & server=$!
            until [ -S "$3" ]; do sleep 0.01; done
            raw=$1; uri="nbd+unix:///?socket=$3"; shift 3
            nbdcopy "$@" --destination-is-zero "$raw" "$uri"
            wait $server"""
        command = ["sh", "-c", script, "sh", str(self._raw), str(target), str(socket), *self.flags]
        return measure(command, self.folder, grows=target, warm=[self._raw])


class NbdcopyFlush(Nbdcopy):
    """The same, with what was copied on disk at the end."""

    name = "nbdcopy --flush"
    flags = ("--flush",)

    def synced(self, task: str) -> str:
        """What is on disk when the command returns."""
        return "image synced" if task == "restore" else "file synced"


class Restic(Tool):
    """restic over a pipe: reads all each time, finds by content what it has."""

    name = "restic"
    does = ("full", "increment")
    packages = ("restic", "libnbd-bin")

    def __init__(self, guest: Guest, folder: Path) -> None:
        super().__init__(guest, folder)
        self._repository = folder / "repository"
        self._environment = {"RESTIC_PASSWORD": "bench", "RESTIC_REPOSITORY": str(self._repository),
                             "RESTIC_CACHE_DIR": str(folder / "cache")}
        run("env", *(f"{name}={value}" for name, value in self._environment.items()), "restic", "init", "-q")

    def synced(self, task: str) -> str:
        """What is on disk when the command returns."""
        del task
        return "packs synced"

    def full(self) -> Cost:
        """Reads the whole disk into a new place."""
        with self.guest.export() as uri:
            pipe = 'nbdcopy "$1" - | restic backup -q --stdin --stdin-filename vda'
            return measure(["sh", "-c", pipe, "sh", uri], self.folder, qemu=self.guest.qemu, grows=self._repository,
                           environment=self._environment, warm=[self.guest.image])

    increment = full


class Borg(Tool):
    """borg over a pipe, with zstd."""

    name = "borg"
    does = ("full", "increment", "restore")
    packages = ("borgbackup", "libnbd-bin")

    def __init__(self, guest: Guest, folder: Path) -> None:
        super().__init__(guest, folder)
        self._repository = folder / "repository"
        self._archive = ""
        self._environment = {"BORG_PASSPHRASE": "bench", "BORG_REPO": str(self._repository),
                             "BORG_BASE_DIR": str(folder / "base")}
        run("env", *(f"{name}={value}" for name, value in self._environment.items()), "borg", "init", "-e",
            "repokey-blake2")

    def synced(self, task: str) -> str:
        """What is on disk when the command returns."""
        del task
        return "segments synced"

    def full(self) -> Cost:
        """Reads the whole disk into a new place."""
        with self.guest.export() as uri:
            pipe = 'nbdcopy "$1" - | borg create --compression zstd,3 --stdin-name vda ::"$2" -'
            self._archive = os.urandom(4).hex()
            return measure(["sh", "-c", pipe, "sh", uri, self._archive], self.folder, qemu=self.guest.qemu,
                           grows=self._repository, environment=self._environment, warm=[self.guest.image])

    increment = full

    def restore(self) -> Cost:
        """Makes a sparse raw file of the newest archive."""
        target = self.folder / "restored"
        target.mkdir()
        command = ["sh", "-c", 'cd "$1" && exec borg extract --sparse ::"$2"', "sh", str(target), self._archive]
        cost = measure(command, self.folder, grows=target, warm=[self._repository], environment=self._environment)
        self.restored = target / "vda"
        return cost


ALWAYS: tuple[type[Tool], ...] = (Vmbackup, Virtnbdbackup, QemuImg, Nbdcopy, NbdcopyFlush)
ON_DEMAND: tuple[type[Tool], ...] = (Restic, Borg)
