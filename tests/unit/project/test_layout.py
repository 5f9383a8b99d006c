"""The tree's promises: small files, relative links, a root that shadows nothing, settings for nobody's machine."""

import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.unit.project.tree import PACKAGES, ROOT, installed_files, modules

MAX_LINES = 400  # beyond, a file has more than one noun


def test_files_are_small() -> None:
    """Every source file is short enough to be read at a sitting."""
    sources = [path for path in installed_files().values() if path.suffix == ".py"]
    sources += [path for folder in ("bench", "tests/lab") for path in (ROOT / folder).rglob("*.py")]
    lines = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in sources}
    assert {name: count for name, count in lines.items() if count >= MAX_LINES} == {}


def test_every_module_says_what_it_is() -> None:
    """Each file starts with a docstring."""
    assert [name for name, path in modules().items() if not path.read_text().startswith(('"""', 'r"""'))] == []


@pytest.mark.parametrize("link", ["nbd", "storage_backends"])
def test_type_checkers_find_the_root_folders(link: str) -> None:
    """The links in src are relative, so a clone anywhere has them right."""
    path = ROOT / "src" / "vmbackup" / link
    assert os.readlink(path) == f"../../{link}"
    assert path.resolve() == ROOT / link


@pytest.mark.parametrize("name", ["nbd", "storage_backends"])
def test_the_root_folders_shadow_no_module(name: str) -> None:
    """libnbd's module is called nbd too: ours is imported as vmbackup.nbd only."""
    found = importlib.util.find_spec(name)
    assert found is None or not Path(str(found.origin)).is_relative_to(ROOT / name)


@pytest.mark.parametrize("package", PACKAGES.values())
def test_packages_come_from_this_tree(package: str) -> None:
    """The editable installation leads here, from any folder."""
    program = f"import {package} as it; print(it.__file__)"
    done = subprocess.run([sys.executable, "-c", program], cwd="/", capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).resolve().is_relative_to(ROOT)


def test_all_packages_are_named() -> None:
    """A folder of modules that pyproject.toml does not name would be missing from the wheel."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {name for name, path in modules().items() if path.name == "__init__.py"}
    assert set(settings["packages"]) == folders
    assert {folder: name for name, folder in settings["package-dir"].items()} == PACKAGES


def test_no_test_stands_for_another() -> None:
    """pytest names the modules of a package from its top on: of two with one name it runs one, twice."""
    packages = {str(path.parent.relative_to(ROOT)) for path in (ROOT / "tests").rglob("__init__.py")}
    assert packages == {"tests", "tests/lab"}
