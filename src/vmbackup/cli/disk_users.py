"""Whose disk an image is, asked of libvirt where there is one: a restore must also work where there is none."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vmbackup.cli.options import State

if TYPE_CHECKING:
    from vmbackup.config.models import Config
    from vmbackup.engine.images.existing_image import DiskUser


def users_of(config: "Config", state: State) -> "Callable[[Path], Sequence[DiskUser]]":
    """What tells the guests that have a path as their disk; none, with a note, where libvirt cannot be asked."""

    def ask(path: Path) -> "Sequence[DiskUser]":
        from vmbackup.cli import access
        from vmbackup.cli.output import warn
        from vmbackup.errors import HypervisorError

        try:
            with access.opened_host(config) as host:
                return host.disk_users(path)
        except HypervisorError as error:
            if not state.quiet:
                warn(f"libvirt cannot say whose disk {path} is ({error.message}): only QEMU's locks guard it")
            return ()

    return ask
