"""Files of the host that a guest is started from: which they are, and whether restore points can hold them."""

from __future__ import annotations

import os
import shlex
import subprocess
import tarfile
from pathlib import Path

import pytest

from vmbackup.hypervisor.boot_files import MOST_BYTES, boot_files
from vmbackup.hypervisor.checks.boot_files import boot_file_checks
from vmbackup.hypervisor.source import BootFile
from vmbackup.hypervisor.xmltree import parse
from vmbackup.repository.point_json import MOST_FILE

EVERY = """<domain><os><loader>/srv/own/CODE.fd</loader><kernel> /boot/vmlinuz </kernel><initrd>/boot/initrd</initrd>
<dtb>/boot/board.dtb</dtb><shim>/boot/shim.efi</shim><cmdline>quiet</cmdline>
<acpi><table type='slic'>/srv/slic</table><table type='raw'>/srv/raw</table></acpi></os></domain>"""
PLAIN = "<domain><os><type>hvm</type><loader type='pflash'>{loader}</loader><nvram>/v.fd</nvram></os></domain>"


class Domain:
    """As much of a virDomain as is asked."""

    def __init__(self, *paths: Path, persistent: bool = True) -> None:
        self._paths, self._persistent = paths, persistent

    def isPersistent(self) -> bool:  # noqa: N802 (libvirt's)
        return self._persistent

    def XMLDesc(self, flags: int) -> str:  # noqa: N802
        assert flags == (2 if self._persistent else 0)
        tags = "".join(f"<{tag}>{path}</{tag}>" for tag, path in zip(("kernel", "initrd"), self._paths, strict=False))
        return f"<domain><os>{tags}</os></domain>"


def test_each_kind_once() -> None:
    """In the order in which a person thinks of them."""
    expected = [
        ("kernel", "/boot/vmlinuz"), ("initrd", "/boot/initrd"), ("dtb", "/boot/board.dtb"), ("shim", "/boot/shim.efi"),
        ("acpi", "/srv/slic"), ("acpi", "/srv/raw"), ("loader", "/srv/own/CODE.fd"),
    ]  # fmt: skip
    assert boot_files(parse(EVERY)) == expected
    twice = boot_files(parse(EVERY.replace("/boot/initrd", "/boot/vmlinuz")))
    assert twice == [expected[0], *expected[2:]]


@pytest.mark.parametrize(
    ("loader", "named"),
    [
        ("/usr/share/OVMF/OVMF_CODE_4M.fd", False),
        ("/usr/lib/xen/boot/hvmloader", False),
        ("/usr/share/../../srv/CODE.fd", True),
        ("/usr/shared/CODE.fd", True),
        ("", False),
    ],
)
def test_firmware(loader: str, named: bool) -> None:
    """Of a package it is none of them."""
    assert boot_files(parse(PLAIN.format(loader=loader))) == ([BootFile("loader", loader)] if named else [])


@pytest.mark.parametrize("persistent", [True, False])
def test_those_that_are_saved(tmp_path: Path, persistent: bool) -> None:
    """What a link leads to is what counts."""
    kernel, link = tmp_path / "vmlinuz-6.1", tmp_path / "vmlinuz"
    kernel.write_bytes(b"kernel")
    link.symlink_to(kernel.name)
    (found,) = boot_file_checks(Domain(link, persistent=persistent), "my guest", far=False)
    assert (found.name, found.subject, found.status, found.fix) == ("boot-files", "my guest", "ok", "")
    assert found.message.endswith(f"started from: {link}")


def test_one_that_is_gone(tmp_path: Path) -> None:
    """A guest that runs does not notice; its next start would."""
    kernel, initrd = tmp_path / "kernel", tmp_path / "initrd"
    kernel.touch()
    initrd.symlink_to("nowhere")
    gone, kept = boot_file_checks(Domain(kernel, initrd), "g", far=False)
    assert (gone.status, kept.status) == ("fail", "ok")
    assert str(initrd) in gone.message
    assert str(initrd) not in kept.message


def test_those_that_no_backup_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too large, or closed to this user, as kernels are in some distributions: with what keeps them."""
    kernel, initrd = tmp_path / "ker nel", tmp_path / "initrd"
    kernel.touch()
    with initrd.open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (str(kernel), os.R_OK))
    (found,) = boot_file_checks(Domain(kernel, initrd), "g", far=False)
    assert found.status == "warn"
    assert f"{kernel} (this user may not read it), {initrd} (it has more than 1 GiB)" in found.message
    assert found.fix == f"sudo tar -chzPf g-boot-files.tar.gz -- '{kernel}' {initrd}"


def test_what_is_saved_can_be_read() -> None:
    assert MOST_BYTES <= MOST_FILE


def test_files_of_another_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is looked at: it would be another file. The command, there, keeps what links lead to."""
    kernel, link = tmp_path / "vmlinuz-6.1", tmp_path / "vm linuz"
    (found,) = boot_file_checks(Domain(link), "my guest", far=True)
    assert found.status == "warn"
    assert str(link) in found.message
    kernel.write_bytes(b"kernel")
    link.symlink_to(kernel.name)
    monkeypatch.chdir(tmp_path)
    subprocess.run(shlex.split(found.fix), check=True, capture_output=True)
    with tarfile.open(tmp_path / "my guest-boot-files.tar.gz") as kept:
        (member,) = kept.getmembers()
        assert (member.isreg(), member.size) == (True, 6)


def test_a_guest_that_starts_by_itself() -> None:
    assert list(boot_file_checks(Domain(), "g", far=False)) == []
