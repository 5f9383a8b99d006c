"""The project's files, and where each of them is installed."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = {"src/vmbackup": "vmbackup", "nbd": "vmbackup.nbd", "storage_backends": "vmbackup.storage_backends"}
"""Folder of a package and the name it is imported by; its subfolders are its subpackages."""


def installed_files() -> dict[str, Path]:
    """What a wheel must hold: the path in the wheel, and the file in the tree."""
    found = {}
    for folder, package in PACKAGES.items():
        for path in sorted((ROOT / folder).rglob("*")):
            inside = path.relative_to(ROOT / folder)
            if path.is_file() and "__pycache__" not in inside.parts and not through_link(ROOT / folder, inside):
                found[f"{package.replace('.', '/')}/{inside}"] = path
    return found


def modules() -> dict[str, Path]:
    """Name of every module of the package, and its file."""
    found = {}
    for name, path in installed_files().items():
        if path.suffix == ".py":
            found[name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")] = path
    return found


def through_link(top: Path, inside: Path) -> bool:
    """Tell whether a path leads through one of the symbolic links that type checkers need."""
    return any((top / parent).is_symlink() for parent in (inside, *inside.parents))
