"""The choice of real files for the bench's disk: of this machine's software, else of Debian's packages."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .measure import BenchError, run

ROOTS = ("/usr",)
LARGEST = 256 << 20   # bytes; a single file shall not make the disk
PACKAGES = (
    "gcc-12", "libllvm14", "firefox-esr", "openjdk-17-jre-headless", "chromium", "libreoffice-core",
    "golang-1.19-src", "golang-1.19-go", "rustc", "llvm-14-dev", "clang-14", "thunderbird", "texlive-fonts-recommended",
    "fonts-noto-core", "inkscape", "blender", "qemu-system-arm", "libboost1.81-dev", "erlang-base", "ghc",
    "postgresql-15", "nodejs", "linux-source-6.1", "libqt5webengine5", "libwebkit2gtk-4.0-37", "emacs-common",
    "texlive-latex-extra", "fonts-noto-cjk", "kicad-symbols", "gimp-data", "mariadb-server-core", "libreoffice-common",
    "openjdk-17-source", "wine64", "supertuxkart-data", "0ad-data", "freecad-common", "scilab-data", "octave",
)
"""Downloaded and unpacked (never installed) in this order until the tree is large enough."""


def collect(tree: Path, size: int) -> str:
    """Fills a folder with `size` bytes of real files; a line that says where they are from.

    The order is by the hash of each path: the same machine gives the same files, of all kinds. Raises BenchError.
    """
    copied = sum(_copy(path, tree) for path in _chosen(size))
    told = f"{_gib(copied)} of {', '.join(ROOTS)}"
    if copied >= size - LARGEST:
        return told
    names = []
    for name in PACKAGES:
        unpacked = _unpack(name, tree / "packages" / name)
        if not unpacked:
            continue
        names.append(name)
        copied += unpacked
        if copied >= size - LARGEST:
            return f"{told} (too small), the rest of the Debian packages {' '.join(names)}"
    raise BenchError(f"this machine and the packages of bench/files.py have only {_gib(copied)} of {_gib(size)}")


def _chosen(size: int) -> Iterator[Path]:
    paths = sorted((path for root in ROOTS for path in _regular(root)),
                   key=lambda path: hashlib.sha256(os.fsencode(path)).digest())
    total = 0
    for path in paths:
        length = path.lstat().st_size
        if total + length <= size:
            total += length
            yield path


def _regular(root: str) -> Iterator[Path]:
    """Regular files on the root's own file system, a file of several names once."""
    device, seen = os.stat(root).st_dev, set()
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if os.lstat(os.path.join(folder, name)).st_dev == device]
        for name in names:
            path = Path(folder, name)
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and 0 < status.st_size <= LARGEST and status.st_ino not in seen:
                seen.add(status.st_ino)
                yield path


def _copy(path: Path, tree: Path) -> int:
    target = tree / path.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
    return target.stat().st_size


def _unpack(name: str, folder: Path) -> int:
    """Bytes of a package's files; 0 where the mirror does not have it."""
    with tempfile.TemporaryDirectory(dir=folder.parents[2], prefix="package-") as work:
        try:
            run("sh", "-c", 'cd "$1" && apt-get download -q "$2"', "sh", work, name)
        except BenchError:
            return 0
        folder.mkdir(parents=True)
        run("dpkg-deb", "-x", str(next(Path(work).glob("*.deb"))), str(folder))
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.2f} GiB"
