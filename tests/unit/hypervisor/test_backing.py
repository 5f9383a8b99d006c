"""What lies below an image, read out of its header as QEMU would."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from vmbackup.hypervisor.backing import backing_files


def overlay(path: Path, backing: str, form: str = "qcow2") -> str:
    command = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", form, str(path), "1M"]
    subprocess.run(command, check=True)
    return str(path)


def below(path: str) -> list[str]:
    return list(backing_files(path))


@pytest.mark.parametrize("form", ["{}", "file:{}", "json"])
def test_each_way_to_name_it(tmp_path: Path, form: str) -> None:
    """A path, one with its protocol, and a description of the node."""
    base = str(tmp_path / "a: base")
    node = {"driver": "qcow2", "file": {"driver": "file", "filename": base}}
    name = f"json:{json.dumps(node)}" if form == "json" else form.format(base)
    assert below(overlay(tmp_path / "top", name)) == [base]


def test_a_chain(tmp_path: Path) -> None:
    """Relative names are below the folder of the image that has them; a raw base ends it."""
    (tmp_path / "golden").mkdir()
    (tmp_path / "golden/base.raw").write_bytes(bytes(1 << 20))
    overlay(tmp_path / "golden/web", "base.raw", "raw")
    top = overlay(tmp_path / "top", "golden/web")
    assert below(top) == [f"{tmp_path}/golden/web", f"{tmp_path}/golden/base.raw"]


def test_nothing_of_this_host(tmp_path: Path) -> None:
    """Another host's image, none, and no image at all."""
    (tmp_path / "short").write_bytes(b"QFI\xfb")
    (tmp_path / "wrong").write_bytes(b"QFI\xfb" + b"\xff" * 96)
    assert below(overlay(tmp_path / "top", "nbd://127.0.0.1/vda", "raw")) == []
    assert [below(str(tmp_path / name)) for name in ("short", "wrong", "none", ".")] == [[]] * 4


def test_a_loop_ends(tmp_path: Path) -> None:
    """An image that builds on itself."""
    assert set(below(overlay(tmp_path / "top", "top"))) == {f"{tmp_path}/top"}
