"""QEMU's firmware descriptors, as distributions ship and administrators override them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vmbackup.hypervisor.define.firmware_files import installed_firmware

SECURE = ("secure-boot", "enrolled-keys")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Of the administrator, of the packages."""
    for name in ("etc", "usr"):
        (tmp_path / name).mkdir()
    for name, size in (("CODE.fd", 100), ("VARS.fd", 540672), ("OTHER.fd", 131072)):
        (tmp_path / name).write_bytes(bytes(size))
    return tmp_path / "etc", tmp_path / "usr"


def descriptor(root: Path, *features: str, template: str = "VARS.fd", **changes: Any) -> str:
    return json.dumps({
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "executable": {"filename": str(root / "CODE.fd"), "format": "raw"},
            "nvram-template": {"filename": str(root / template), "format": "raw"},
        },
        "targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}],
        "features": list(features),
        **changes,
    })  # fmt: skip


def test_what_the_packages_bring(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """In the order of their names, each with its say on Secure Boot and the size of its variables."""
    (folders[1] / "60-plain.json").write_text(descriptor(tmp_path, "acpi-s3"))
    (folders[1] / "40-secure.json").write_text(descriptor(tmp_path, *SECURE, template="OTHER.fd"))
    secure, plain = installed_firmware("x86_64", folders)
    assert (secure.secure_boot, secure.enrolled_keys, secure.nvram_bytes) == (True, True, 131072)
    assert (plain.secure_boot, plain.enrolled_keys, plain.nvram_bytes) == (False, False, 540672)
    assert plain.machines == ("pc-i440fx-*", "pc-q35-*")
    assert installed_firmware("aarch64", folders) == ()


def test_the_administrators_word_goes_first(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """A file of the same name replaces the package's; an empty one masks it."""
    (folders[1] / "60-plain.json").write_text(descriptor(tmp_path))
    (folders[0] / "60-plain.json").write_text(descriptor(tmp_path, "secure-boot"))
    assert [each.secure_boot for each in installed_firmware("x86_64", folders)] == [True]
    (folders[0] / "60-plain.json").write_text("")
    assert installed_firmware("x86_64", folders) == ()


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "[]",
        "{}",
        json.dumps({"interface-types": ["bios"], "mapping": {"device": "memory"}, "targets": [], "features": []}),
    ],
)
def test_what_is_no_such_firmware(folders: tuple[Path, Path], text: str) -> None:
    (folders[1] / "x.json").write_text(text)
    assert installed_firmware("x86_64", folders) == ()


def test_files_that_are_gone(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """A descriptor alone boots nothing."""
    (folders[1] / "x.json").write_text(descriptor(tmp_path, template="gone.fd"))
    assert installed_firmware("x86_64", folders) == ()
    (folders[1] / "x.json").write_text(descriptor(tmp_path))
    (tmp_path / "CODE.fd").unlink()
    assert installed_firmware("x86_64", folders) == ()
