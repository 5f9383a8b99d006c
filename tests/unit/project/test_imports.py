"""Who may import whom: cli, daemon -> engine -> {hypervisor, repository} -> {nbd, storage_backends}."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.unit.project.tree import modules

_BELOW_ENGINE = {"hypervisor", "repository", "nbd", "storage_backends", "errors", "progress", "sqlite", "durable"}
MAY_IMPORT = {
    "cli": {"daemon", "engine", "config"} | _BELOW_ENGINE,
    "daemon": {"engine", "config"} | _BELOW_ENGINE,
    "engine": _BELOW_ENGINE,
    "hypervisor": {"nbd", "errors", "durable"},
    "repository": {"storage_backends", "errors", "progress", "sqlite", "durable"},
    "config": {"errors", "storage_backends", "durable"},
    "nbd": set(),
    "storage_backends": set(),
    "errors": set(),
    "progress": set(),
    "sqlite": set(),
    "durable": set(),
    "": set(),
}
"""Part of the package, and the other parts that it may import; "" is vmbackup/__init__.py."""

MAY_USE = {
    "libvirt": ("vmbackup.hypervisor",),
    "libvirt_qemu": ("vmbackup.hypervisor",),
    "boto3": ("vmbackup.storage_backends.s3_client",),
    "botocore": ("vmbackup.storage_backends.s3_client", "vmbackup.storage_backends.s3_errors"),
    "apscheduler": ("vmbackup.daemon",),
    "prometheus_client": ("vmbackup.daemon",),
    "click": ("vmbackup.cli",),
    "rich": ("vmbackup.cli",),
    "pydantic": ("vmbackup.config",),
    "pydantic_core": ("vmbackup.config",),
    "cryptography": ("vmbackup.repository", "vmbackup.engine"),
    "zstandard": ("vmbackup.repository", "vmbackup.engine"),
    "blake3": ("vmbackup.repository", "vmbackup.engine"),
}
"""Everything from outside of the standard library, and the modules that it is for."""

ONLY_IN_FUNCTIONS = {"libvirt", "libvirt_qemu", "boto3", "botocore", "apscheduler", "prometheus_client"}
"""What costs so much at start-up that no module may import it as it is loaded."""

MODULES = modules()


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name: str) -> None:
    """A module imports only from its own part and from those below."""
    own = part(name)
    others = {part(imported) for imported, _ in imports(name) if imported.split(".")[0] == "vmbackup"}
    assert others - {own, ""} <= MAY_IMPORT[own]


@pytest.mark.parametrize("name", MODULES)
def test_libraries_stay_where_they_belong(name: str) -> None:
    """A library is imported only by the part that it is for, and a heavy one only inside functions."""
    for imported, at_load in imports(name):
        library = imported.split(".")[0]
        if library == "vmbackup" or library in sys.stdlib_module_names:
            continue
        assert any(f"{name}.".startswith(f"{owner}.") for owner in MAY_USE[library]), imported
        assert not (at_load and library in ONLY_IN_FUNCTIONS), f"{imported} at module level"


def test_folders_of_a_part_make_no_circle() -> None:
    """Neither do engine's folders, whatever their order."""
    uses: dict[str, set[str]] = {}
    for name in MODULES:
        for imported, _ in imports(name):
            own, other = folder(name), folder(imported)
            if own and other and own != other:
                uses.setdefault(own, set()).add(other)
    assert "backup" in uses
    tuple(TopologicalSorter(uses).static_order())


def test_an_import_is_seen_wherever_it_stands() -> None:
    """The rules above would notice each form of an import."""
    source = (
        "import a.b\nfrom c import d\nfrom . import e\nfrom ..f import g\n"
        "if TYPE_CHECKING:\n    import h\ndef x():\n    import i\nclass y:\n    import j\n"
    )
    found = set(walk(ast.parse(source), "vmbackup.part.module"))
    assert found == {
        ("a.b", True),
        ("c.d", True),
        ("vmbackup.part.e", True),
        ("vmbackup.f.g", True),
        ("h", False),
        ("i", False),
        ("j", True),
    }


def part(name: str) -> str:
    """Name of the part of the package that a module (or a name in one) belongs to, "" for the package itself."""
    first = [*name.split("."), ""][1]
    return first if first in MAY_IMPORT or f"vmbackup.{first}" in MODULES else ""


def folder(name: str) -> str:
    """engine's folder that a name is of, "" outside of any."""
    _, engine, found, *rest = [*name.split("."), "", "", ""]
    return found if engine == "engine" and rest[0] else ""


@cache
def imports(name: str) -> tuple[tuple[str, bool], ...]:
    path: Path = MODULES[name]
    package = f"{name}.__init__" if path.name == "__init__.py" else name
    return tuple(walk(ast.parse(path.read_text()), package))


def walk(node: ast.AST, name: str, *, at_load: bool = True) -> Iterator[tuple[str, bool]]:
    """Yield every imported dotted name, and whether it is imported when the module is loaded."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, at_load) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = name.split(".")[: -child.level] if child.level else []
            base += [child.module] if child.module else []
            yield from ((".".join([*base, alias.name]), at_load) for alias in child.names)
        else:
            later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from walk(child, name, at_load=at_load and not later and not for_types)
