"""What is built is what stands in the tree, without a warning."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

from tests.unit.project.tree import ROOT, installed_files

_NOT_COPIED = ignore_patterns(".git", ".venv", ".lab", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")
_METADATA = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}
_NOT_IN_SDIST = {".ci/run", ".gitattributes", ".gitignore", "src/vmbackup/nbd", "src/vmbackup/storage_backends"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The sdist, the wheel made from it, and the wheel made from a copy of the tree."""
    folder = tmp_path_factory.mktemp("built")
    copytree(ROOT, folder / "tree", symlinks=True, ignore=_NOT_COPIED)
    output = _build(folder / "tree", folder / "out")
    output += _build(folder / "tree", folder / "direct", "--wheel")
    assert "warning" not in output.lower(), output
    [sdist] = (folder / "out").glob("*.tar.gz")
    [from_sdist] = (folder / "out").glob("*.whl")
    [direct] = (folder / "direct").glob("*.whl")
    return sdist, from_sdist, direct


def test_wheels_hold_the_tree_and_nothing_else(built: tuple[Path, Path, Path]) -> None:
    """By way of an sdist or not, every file of the packages is there with its bytes, and no other."""
    tree = {name: path.read_bytes() for name, path in installed_files().items()}
    for wheel in built[1:]:
        with zipfile.ZipFile(wheel) as archive:
            held = {name: archive.read(name) for name in archive.namelist()}
        metadata = {name.partition(".dist-info/")[2] for name in held if ".dist-info/" in name}
        assert metadata == _METADATA
        assert {name: data for name, data in held.items() if ".dist-info/" not in name} == tree


def test_the_sdist_holds_what_is_committed(built: tuple[Path, Path, Path]) -> None:
    """Documents, tests and the example configuration travel with the source."""
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git clone: what is committed is not known")
    with tarfile.open(built[0]) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    committed = {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}
    assert committed - held == _NOT_IN_SDIST


def test_an_installed_wheel_runs(built: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """The package in the wheel is complete: the command starts, and its parts come from the wheel."""
    with zipfile.ZipFile(built[1]) as archive:
        archive.extractall(tmp_path)
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import vmbackup.cli, vmbackup.nbd, vmbackup.storage_backends as last\n"
        "assert last.__file__.startswith(sys.argv[1]), last.__file__\n"
        "sys.exit(vmbackup.cli.main(['--help']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "Usage: " in done.stdout


def _build(tree: Path, target: Path, *options: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", target, *options, tree],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
