"""The program with a repository of its own, and guests that may be defined anew."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.domain import remove_domain
from tests.lab.session import Lab
from tests.real.cli.test_commands import Program

SWTPM = Path("/var/lib/libvirt/swtpm")


@pytest.fixture
def vmbackup(work_dir: Path, scratch_dir: Path) -> Program:
    config = work_dir / "config.toml"
    config.write_text(
        f'[libvirt]\nscratch_dir = "{scratch_dir}"\n[host]\ncache_dir = "{work_dir}/cache"\n'
        f'[repositories.local]\nurl = "file://{work_dir}/repository"\npassphrase_file = "{work_dir}/passphrase"\n'
        f'[daemon]\nstate_dir = "{work_dir}/state"\n'
    )
    config.chmod(0o600)
    program = Program(config)
    program("init")
    return program


@pytest.fixture
def domain(lab: Lab) -> Iterator[Callable[[str], Any]]:
    """Looks a domain up by name; whatever was looked up is gone after the test, with its NVRAM and TPM."""
    found: dict[str, Any] = {}

    def look(name: str) -> Any:
        found[name] = lab.connection.lookupByName(name)
        return found[name]

    yield look
    for each in found.values():
        uuid = each.UUIDString()
        remove_domain(each)
        shutil.rmtree(SWTPM / uuid, ignore_errors=True)
