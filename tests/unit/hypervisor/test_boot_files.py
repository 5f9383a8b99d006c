"""Files of the host that a guest is started from are named, for no restore point holds them."""

from __future__ import annotations

import os
import shlex
import subprocess
import tarfile
from pathlib import Path

import pytest

from vmbackup.hypervisor.checks.boot_files import boot_file_checks, boot_files
from vmbackup.hypervisor.xmltree import parse

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
    expected = ["/boot/vmlinuz", "/boot/initrd", "/boot/board.dtb", "/boot/shim.efi", "/srv/slic", "/srv/raw"]
    assert boot_files(parse(EVERY)) == [*expected, "/srv/own/CODE.fd"]
    assert boot_files(parse(EVERY.replace("/boot/initrd", "/boot/vmlinuz"))).count("/boot/vmlinuz") == 1


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
    assert boot_files(parse(PLAIN.format(loader=loader))) == ([loader] if named else [])


@pytest.mark.parametrize("persistent", [True, False])
def test_the_command_keeps_what_a_link_leads_to(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    persistent: bool,
) -> None:
    kernel, link = tmp_path / "vmlinuz-6.1", tmp_path / "vm linuz"
    kernel.write_bytes(b"kernel")
    link.symlink_to(kernel.name)
    (found,) = boot_file_checks(Domain(link, persistent=persistent), "my guest", far=False)
    assert (found.name, found.subject, found.status) == ("boot-files", "my guest", "warn")
    assert str(link) in found.message
    monkeypatch.chdir(tmp_path)
    subprocess.run(shlex.split(found.fix), check=True, capture_output=True)
    with tarfile.open(tmp_path / "my guest-boot-files.tar.gz") as kept:
        (member,) = kept.getmembers()
        assert (member.isreg(), member.size) == (True, 6)


def test_one_that_is_gone(tmp_path: Path) -> None:
    """A guest that runs does not notice; its next start would."""
    kernel, initrd = tmp_path / "kernel", tmp_path / "initrd"
    kernel.touch()
    initrd.symlink_to("nowhere")
    gone, kept = boot_file_checks(Domain(kernel, initrd), "g", far=False)
    assert (gone.status, kept.status) == ("fail", "warn")
    assert str(initrd) in gone.message
    assert str(initrd) not in kept.message + kept.fix


def test_one_that_this_user_may_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels below /boot are root's in some distributions."""
    kernel = tmp_path / "kernel"
    kernel.touch()
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (str(kernel), os.R_OK))
    (found,) = boot_file_checks(Domain(kernel), "g", far=False)
    assert found.fix.startswith("sudo tar ")


def test_files_of_another_host(tmp_path: Path) -> None:
    """Nothing here is looked at: a file of that name here is another one."""
    (found,) = boot_file_checks(Domain(tmp_path / "gone"), "g", far=True)
    assert "the files of its host" in found.message
    assert found.fix.startswith("tar ")


def test_a_guest_that_starts_by_itself() -> None:
    assert list(boot_file_checks(Domain(), "g", far=False)) == []
