"""Fixtures of all tests. A test that asks for `lab` is skipped where libvirt or QEMU lack."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import machine
from tests.lab.ceph import Ceph, CephError
from tests.lab.disk import Disk
from tests.lab.domain import Workhorse
from tests.lab.guest import Guest
from tests.lab.guest_image import GuestImageError, guest_image
from tests.lab.second import SecondLibvirt
from tests.lab.session import Lab
from tests.lab.trixie import TrixieError, trixie_root


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Real libvirt for the whole run. At its end nothing of the run may be left on the machine."""
    reason = machine.missing()
    if reason:
        pytest.skip(reason)
    try:
        running = Lab().__enter__()
    except TrixieError as error:
        pytest.skip(str(error))
    try:
        yield running
        left = running.leftovers()
    finally:
        running.__exit__()
    assert not left, "left behind by the tests:\n" + "\n".join(left)


@pytest.fixture(scope="module")
def second(lab: Lab) -> Iterator[SecondLibvirt]:
    """A second libvirt of this machine's version, for the tests of one file."""
    with lab.second() as running:
        yield running


@pytest.fixture(scope="module")
def trixie(lab: Lab) -> Iterator[SecondLibvirt]:
    """Debian 13's libvirt and QEMU beside this machine's, for the tests of one file."""
    try:
        root = trixie_root()
    except TrixieError as error:
        pytest.skip(str(error))
    with lab.second(root) as running:
        yield running


@pytest.fixture(scope="session")
def ceph() -> Iterator[Ceph]:
    """A real object store for the whole run."""
    try:
        running = Ceph().__enter__()
    except CephError as error:
        pytest.skip(str(error))
    yield running
    running.__exit__()


@pytest.fixture
def make_domain(lab: Lab) -> Iterator[Callable[..., Workhorse]]:
    """Makes paused domains (`make_domain(Disk("vda", size=GiB), ...)`), which end with the test."""
    made: list[Workhorse] = []

    def make(*disks: Disk, start: bool = True) -> Workhorse:
        made.append(lab.workhorse(*disks, start=start))
        return made[-1]

    yield make
    for horse in made:
        horse.remove()


@pytest.fixture
def make_guest(lab: Lab) -> Iterator[Callable[..., Guest]]:
    """Boots real guests (`make_guest(overlay=True, disks=[...])`), which end with the test."""
    made: list[Guest] = []

    def make(**options: Any) -> Guest:
        try:
            image = guest_image()
        except GuestImageError as error:
            pytest.skip(f"no image of the guest: {error}")
        made.append(Guest(lab, image, **options))
        made[-1].boot()
        return made[-1]

    yield make
    for guest in made:
        guest.remove()


@pytest.fixture
def work_dir(lab: Lab) -> Iterator[Path]:
    """A folder on a real file system for repositories and restores; gone after the test."""
    import shutil

    folder = lab.new_folder("work")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def scratch_dir(lab: Lab) -> Iterator[Path]:
    """A folder for scratch files; the test must have left it empty."""
    folder = lab.new_folder("scratch")
    yield folder
    left = [path.name for path in folder.iterdir()]
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert not left, f"scratch files left behind: {left}"


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This machine's time zone is UTC."""
    import time

    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder with a short path (a socket's has 107 bytes) that other users may pass."""
    import shutil
    import tempfile

    path = Path(tempfile.mkdtemp(prefix="vmbackup-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)
