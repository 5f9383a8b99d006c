"""What doctor finds of a guest that is started from files of its host: no restore point holds those."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vmbackup.hypervisor.checks.check import Check
from vmbackup.hypervisor.xmltree import Element, parse

_FILES = ("./os/kernel", "./os/initrd", "./os/dtb", "./os/shim", "./os/acpi/table")
_LOADER = "./os/loader"
# Firmware below these is a package's: the next host installs it.
_PACKAGED = (Path("/usr/share"), Path("/usr/lib"), Path("/usr/lib64"), Path("/usr/libexec"))
_XML_INACTIVE = 2


def boot_file_checks(domain: Any, name: str, *, far: bool) -> Iterator[Check]:
    """Of a virDomain, as it is started the next time. `far`: its files lie on another host, and are not looked at."""
    paths = boot_files(parse(domain.XMLDesc(_XML_INACTIVE if domain.isPersistent() else 0)))
    if not paths:
        return
    gone = [] if far else [path for path in paths if _is_gone(path)]
    if gone:
        yield Check("boot-files", name, "fail", f"its next start fails, for these files are gone: {', '.join(gone)}")
    kept = [path for path in paths if path not in gone]
    if kept:
        where = "its host" if far else "this host"
        message = f"no restore point holds the files of {where} that it is started from: {', '.join(kept)}"
        yield Check("boot-files", name, "warn", message, _copied(name, kept, far=far))


def boot_files(root: Element) -> list[str]:
    """Paths of the host's files that the guest of this XML is started from, each once; a package's firmware is none."""
    found = [_text(each) for tag in _FILES for each in root.findall(tag)]
    found += [path for each in root.findall(_LOADER) if (path := _text(each)) and not _is_packaged(path)]
    return list(dict.fromkeys(path for path in found if path))


def _text(found: Element) -> str:
    return (found.text or "").strip()


def _is_packaged(path: str) -> bool:
    """By its name, links in it unfollowed: a package's link may lead anywhere."""
    return any(Path(os.path.normpath(path)).is_relative_to(folder) for folder in _PACKAGED)


def _is_gone(path: str) -> bool:
    """False where nobody can tell."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _copied(name: str, paths: list[str], *, far: bool) -> str:
    """The command that keeps them, what links lead to included (/boot/vmlinuz is one)."""
    closed = not far and not all(os.access(path, os.R_OK) for path in paths)
    command = shlex.join(["tar", "-chzPf", f"{name}-boot-files.tar.gz", "--", *paths])
    return f"sudo {command}" if closed else command
