"""A host that is gone: what is left of it is a bucket and the recovery key."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import sys
from pathlib import Path

from . import machine
from .ceph import USERS, Ceph
from .disk import Disk, MiB
from .domain import Workhorse
from .session import FOLDER_MODE
from .stage import Stage

CONFIG = """\
[libvirt]
scratch_dir = "{folder}/scratch"

[repositories.local]
url = "file://{folder}/repository"
passphrase_file = "{folder}/passphrase"

[repositories.offsite]
url = "s3://{bucket}/hv1"
endpoint_url = "{endpoint}"
access_key_file = "{folder}/access"
secret_key_file = "{folder}/secret"
passphrase_file = "{folder}/passphrase"

[host]
cache_dir = "{folder}/cache"

[daemon]
state_dir = "{folder}/state"
"""
READER = Path(__file__).parents[1] / "independent_reader.py"


class LostHost:
    """The host `hv1` of the page: it keeps all in a folder of its own, and a replica in the stage's bucket."""

    def __init__(self, stage: Stage, ceph: Ceph) -> None:
        self._stage, self._ceph = stage, ceph
        self.folder = stage.folder / "hv1"
        self.folder.mkdir(mode=FOLDER_MODE)
        for name, key in zip(("access", "secret"), USERS["vmbackup"], strict=True):
            path = self.folder / name
            path.write_text(key)
            path.chmod(0o600)
        self._config = self.folder / "config.toml"
        self._config.write_text(CONFIG.format(folder=self.folder, bucket=stage.bucket, endpoint=ceph.http))
        self.run("init")
        self.run("--repository", "offsite", "init", "--create-bucket", "--replica-of", "local")

    def run(self, *arguments: str) -> str:
        """Runs its vmbackup."""
        return self._stage.run("vmbackup", "--config", str(self._config), *arguments)

    def backup(self, *guests: str) -> None:
        """Restore points of them in the bucket; then what it has of its own is lost."""
        self.run("backup", *guests)
        self.run("copy", "--from", "local", "--to", "offsite")
        shutil.rmtree(self.folder / "repository")

    def recovery_key(self) -> str:
        """The line that was written down."""
        lines = (self.folder / "recovery-key-local").read_text().splitlines()
        return next(line for line in lines if not line.startswith("#"))

    def workhorse(self, guest: str) -> Workhorse:
        """A guest of the page without a system: some data on a disk, and running, paused."""
        folder = self.folder / guest
        folder.mkdir(mode=FOLDER_MODE)
        os.chown(folder, *machine.qemu_user())
        horse = Workhorse(self._stage.connection, self._stage.names[guest], folder, [Disk("vda", 256 * MiB)])
        horse.start()
        for at in range(0, 64 * MiB, 8 * MiB):
            horse.write("vda", at, MiB, 1 + at // MiB)
        return horse

    def exchanged(self) -> dict[str, str]:
        """What else of the page is another thing here."""
        python = shlex.quote(sys.executable)
        return {
            "apt install -y": "true apt install -y",
            "make install": "true make install",
            "RECOVERY-KEY": self.recovery_key(),
            "--network '*=default'": "--network '*=none'",
            "vmbackup doctor\n": "doctor\n",
            'domains = ["*"]': self._stage.domains,
            '"hv1"': f'"{socket.gethostname()}"',
            "/srv/": f"{self._stage.folder}/srv/",
            "RCLONE_CONFIG_BUCKET_ENDPOINT=https://fsn1.your-objectstorage.com":
                f"RCLONE_CONFIG_BUCKET_ENDPOINT={self._ceph.http}",
            "python3 -m venv": "true python3 -m venv",
            "/srv/reader/bin/pip install": "true pip install",
            "/srv/reader/bin/python": python,
            "tests/independent_reader.py": str(READER),
        }
