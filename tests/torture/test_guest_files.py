"""Files that were deleted in a running Debian come back out of a restore point, by the command as it is typed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.appliance import ApplianceError, kernel
from tests.lab.guest import Guest

pytestmark = [pytest.mark.torture, pytest.mark.real]
CONFIG = """\
[libvirt]
scratch_dir = "{scratch}"
[host]
cache_dir = "{work}/cache"
[daemon]
state_dir = "{work}/state"
[repositories.local]
url = "file://{work}/repository"
passphrase_file = "{work}/secrets/passphrase"
"""
Typed = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def typed(work_dir: Path, scratch_dir: Path) -> Typed:
    try:
        environment = os.environ | kernel()
    except ApplianceError as error:
        pytest.skip(str(error))
    config = work_dir / "config.toml"
    config.write_text(CONFIG.format(work=work_dir, scratch=scratch_dir))
    (work_dir / "secrets").mkdir(mode=0o700)

    def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vmbackup.cli", "--config", str(config), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == code, done.stderr + done.stdout
        return done

    run("init")
    return run


def test_deleted_files_come_back(typed: Typed, make_guest: Callable[..., Guest], work_dir: Path) -> None:
    guest = make_guest()
    contents = {f"/srv/shop/{name}": os.urandom(size) for name, size in (("orders.db", 300_000), ("a b\x1b[31m", 10))}
    guest.agent.run("mkdir -p /srv/shop; ln -s orders.db /srv/shop/current; chmod 750 /srv/shop")
    for path, data in contents.items():
        guest.agent.put(path, data)
    guest.agent.run("sync")
    typed("backup", guest.name)
    guest.agent.run("rm -r /srv/shop; sync")
    typed("backup", guest.name)
    newest, older = json.loads(typed("list", guest.name, "--json").stdout)["points"]

    begun = time.monotonic()
    told = json.loads(typed("files", older["id"], "vda", "ls", "--json").stdout)
    print(f"\nfirst listing after {time.monotonic() - begun:.1f} s, load {os.getloadavg()[0]:.1f}")
    assert [(fs["device"], fs["type"], fs["mount_point"]) for fs in told["filesystems"]] == [("/dev/vda", "ext4", "/")]

    output = work_dir / "out"
    typed("files", older["id"], "vda", "get", "/srv/shop", "/etc/os-release", "--output", str(output))
    for path, data in contents.items():
        found = (output / "shop" / path.rpartition("/")[2]).read_bytes()
        assert hashlib.sha256(found).digest() == hashlib.sha256(data).digest()
    assert (output / "shop" / "current").read_bytes() == contents["/srv/shop/orders.db"]
    assert oct((output / "shop").stat().st_mode) == "0o40750"
    assert "Debian" in (output / "os-release").read_text()
    gone = typed("files", newest["id"], "vda", "ls", "/srv/shop", code=5)
    assert "there is no /srv/shop in the guest" in gone.stderr
