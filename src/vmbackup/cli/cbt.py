"""`vmbackup cbt`: changed-block tracking for raw disks."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmbackup.cli.options import Command, Group, State

if TYPE_CHECKING:
    from vmbackup.hypervisor.tracking.disk import Tracking

_compare = click.option("--compare", is_flag=True, help="Read the whole disk both ways first: it takes its time.")


@click.group("cbt", cls=Group, short_help="Track changes of raw disks.")
def command() -> None:
    """Changed-block tracking for a raw disk of a guest that is off: its backups become incremental.

    A small qcow2 beside the data holds the bitmaps; the data stays raw, where it is, and is not written. From then on
    the guest alone may write to it. Needs libvirt 10.10 (Debian 13).
    """


@command.command("enable", cls=Command, short_help="Put a tracking file before a raw disk.")
@click.argument("domain", metavar="DOMAIN")
@click.argument("disk", metavar="DISK")
@click.option(
    "--metadata",
    metavar="PATH",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the tracking file goes; else beside an image, and for a device in /var/lib/libvirt/images.",
)
@_compare
@click.pass_obj
def enable(state: State, domain: str, disk: str, metadata: Path | None, *, compare: bool) -> int:
    """Track the changes of DISK (as vda) of DOMAIN, which must be off. The next backup reads it whole once more."""
    from vmbackup.cli import access
    from vmbackup.hypervisor.tracking import disk as tracking

    config = access.load_config(state)
    with access.opened_host(config) as host:
        done = tracking.enable(host, host.domain(domain), disk, metadata, compare=compare)
    return _say(state, done)


@command.command("disable", cls=Command, short_help="Take the tracking file away again.")
@click.argument("domain", metavar="DOMAIN")
@click.argument("disk", metavar="DISK")
@_compare
@click.pass_obj
def disable(state: State, domain: str, disk: str, *, compare: bool) -> int:
    """Give DISK of DOMAIN, which must be off, its raw data back without the tracking file; that is deleted."""
    from vmbackup.cli import access
    from vmbackup.hypervisor.tracking import disk as tracking

    config = access.load_config(state)
    with access.opened_host(config) as host:
        done = tracking.disable(host, host.domain(domain), disk, compare=compare)
    return _say(state, done)


def _say(state: State, done: "Tracking") -> int:
    from vmbackup.cli.output import clean, say, say_json

    if state.json:
        say_json(
            {
                "domain": done.domain,
                "disk": done.target,
                "tracked": done.enabled,
                "changed": done.changed,
                "data": str(done.data),
                "metadata": str(done.metadata) if done.enabled else None,
            }
        )
        return 0
    what = f"disk {clean(done.target)} of {clean(done.domain)}"
    already = "" if done.changed else " already, nothing was done"
    if done.enabled:
        say(f"{what} is tracked{already}: {clean(str(done.metadata))} before {clean(str(done.data))}")
    else:
        say(f"{what} is not tracked{already}: its data is {clean(str(done.data))}")
    return 0
