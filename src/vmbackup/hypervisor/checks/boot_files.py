"""What doctor finds of a guest that is started from files of its host: whether restore points can hold those."""

import os
import shlex
from collections.abc import Iterator
from typing import Any

from vmbackup.hypervisor.boot_files import boot_files, check_fit
from vmbackup.hypervisor.checks.check import Check
from vmbackup.hypervisor.xmltree import parse

_XML_INACTIVE = 2


def boot_file_checks(domain: Any, name: str, *, far: bool) -> Iterator[Check]:
    """Of a virDomain, as it is started the next time. `far`: its files lie on another host, and are not looked at."""
    xml = domain.XMLDesc(_XML_INACTIVE if domain.isPersistent() else 0)
    paths = [file.path for file in boot_files(parse(xml))]
    if not paths:
        return
    if far:
        message = f"no restore point that is made from here holds the files that it is started from: {', '.join(paths)}"
        yield Check("boot-files", name, "warn", message, _copied(name, paths))
        return
    gone = [path for path in paths if _is_gone(path)]
    if gone:
        yield Check("boot-files", name, "fail", f"its next start fails, for these files are gone: {', '.join(gone)}")
    unfit = {path: why for path in paths if path not in gone and (why := _unfit(path))}
    if unfit:
        named = ", ".join(f"{path} ({why})" for path, why in unfit.items())
        message = f"no restore point can hold these files that it is started from: {named}"
        yield Check("boot-files", name, "warn", message, f"sudo {_copied(name, list(unfit))}")
    if kept := [path for path in paths if path not in gone and path not in unfit]:
        message = f"each restore point holds the files of this host that it is started from: {', '.join(kept)}"
        yield Check("boot-files", name, "ok", message)


def _is_gone(path: str) -> bool:
    """False where nobody can tell."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _unfit(path: str) -> str:
    """Why a backup by this user leaves it out; "" where it does not."""
    try:
        check_fit(os.stat(path))
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return "" if os.access(path, os.R_OK) else "this user may not read it"


def _copied(name: str, paths: list[str]) -> str:
    """The command that keeps them, what links lead to included (/boot/vmlinuz is one)."""
    return shlex.join(["tar", "-chzPf", f"{name}-boot-files.tar.gz", "--", *paths])
