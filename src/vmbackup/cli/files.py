"""`vmbackup files`: looks into the guest's file systems, and takes files out, with no restore."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from vmbackup.cli.options import Command, State
from vmbackup.errors import UsageError

if TYPE_CHECKING:
    from vmbackup.engine.files.files import Entry, GuestFiles
    from vmbackup.engine.files.guest_layout import FileSystem
    from vmbackup.engine.files.landed_tree import Landed

_SHOWN = 10  # files that were left out, named one by one without -v
_LATEST = 253_402_300_000  # seconds: the end of the year 9999, the last that a date can tell


@click.command("files", cls=Command, short_help="List and fetch single files of a guest, with no restore.")
@click.argument("point", metavar="POINT")
@click.argument("disk", metavar="DISK")
@click.argument("verb", metavar="ls|get", type=click.Choice(("ls", "get")))
@click.argument("paths", metavar="[PATH...]", nargs=-1)
@click.option("--output", metavar="DIR", type=click.Path(file_okay=False, path_type=Path), help="Where get writes.")
@click.option("--with", "others", metavar="DISK", multiple=True, help="A further disk of the guest; again for more.")
@click.pass_obj
def command(
    state: State,
    point: str,
    disk: str,
    verb: Literal["ls", "get"],
    paths: tuple[str, ...],
    output: Path | None,
    others: tuple[str, ...],
) -> int:
    """List the file systems of DISK (ls), a folder (ls PATH), or fetch files and folders (get PATH... --output DIR).

    PATH is the guest's, as in /etc/passwd, where its /etc/fstab tells what is mounted where; else, or to be exact, it
    names the file system too: /dev/vda2:/etc/passwd. Volume groups and RAIDs that span disks, and what the guest mounts
    of other disks, need these by --with. POINT is an id, a prefix of it, DOMAIN@latest or DOMAIN@TIME.

    The guest's file systems are read by libguestfs (apt install libguestfs-tools), by a user without rights, without
    network, in a virtual machine. No file is ever overwritten; owners, devices and setuid bits are not taken over.
    """
    from vmbackup.cli import access
    from vmbackup.cli.output import say_json, warn
    from vmbackup.engine.files.files import guest_files
    from vmbackup.repository.resolve import resolve

    _check(verb, paths, output)
    warnings: list[str] = []
    config = access.load_config(state)
    with access.opened_repository(config, state.repository) as repository:
        found = resolve(repository.survey(), point, domains=True)
        targets, cache_dir = (disk, *others), config.host.cache_dir
        with (
            access.progress(state) as progress,
            guest_files(repository, found, targets, cache_dir, progress, warn=warnings.append) as files,
        ):
            report = _list(files, paths) if output is None else _Fetched(files.fetch(paths, output, progress), output)
            head = {"point": found.id, "disk": disk, "start_seconds": round(files.started_seconds, 3)}
    warnings += report.warnings(verbose=bool(state.verbose))
    if state.json:
        say_json({**head, **report.document(), "warnings": warnings})
    else:
        report.show()
        for warning in warnings:
            warn(warning)
    return 3 if warnings else 0


def _check(verb: str, paths: tuple[str, ...], output: Path | None) -> None:
    if verb == "ls" and output is not None:
        raise UsageError("--output goes with get", "leave it out, or write get instead of ls")
    if verb == "ls" and len(paths) > 1:
        raise UsageError("ls lists one folder", "name one PATH")
    if verb == "get" and output is None:
        raise UsageError("get needs --output", "name the folder to write to: --output DIR")
    if verb == "get" and not paths:
        raise UsageError("get needs a PATH", "name files or folders of the guest, as in get /etc/passwd")
    for path in paths:
        _check_path(path, output)


def _check_path(path: str, output: Path | None) -> None:
    """What can be told before a virtual machine starts, which takes a minute."""
    from vmbackup.engine.images.new_files import there_already

    if not path.startswith(("/", "btrfsvol:/")):
        raise UsageError(f'"{path}" is no path', 'write /PATH or DEVICE:/PATH; "ls" alone lists the devices')
    there = output / path.rstrip("/").rpartition("/")[2] if output is not None else None
    if there is not None and there != output and os.path.lexists(there):
        raise there_already(there)


def _flat(text: str) -> str:
    """Text of the guest on one line; what else steers a terminal goes where it is printed."""
    return text.replace("\n", "?")


class _Report:
    """What is told at the end."""

    def document(self) -> dict[str, Any]:
        """For programs."""
        raise NotImplementedError

    def show(self) -> None:
        """For people."""
        raise NotImplementedError

    def warnings(self, *, verbose: bool) -> list[str]:  # noqa: ARG002
        """A sentence each."""
        return []


def _list(files: "GuestFiles", paths: tuple[str, ...]) -> _Report:
    return _Listed(paths[0], files.listing(paths[0])) if paths else _Survey(files.filesystems())


class _Survey(_Report):
    def __init__(self, found: "list[FileSystem]") -> None:
        self._found = found

    def document(self) -> dict[str, Any]:
        fields = ("device", "type", "label", "uuid", "size", "mount_point", "has_files", "remark")
        return {"filesystems": [{field: getattr(fs, field) for field in fields} for fs in self._found]}

    def show(self) -> None:
        from vmbackup.cli.output import say, table
        from vmbackup.config.units import format_size

        if not self._found:
            say("The disk has no file system.")
            return
        rows = []
        for fs in self._found:
            where = fs.mount_point or fs.remark or "-"
            texts = [_flat(text) for text in (fs.device, fs.type or "-", fs.label or "-", format_size(fs.size), where)]
            rows.append(texts)
        say(table(("DEVICE", "TYPE", "LABEL", "SIZE", "MOUNTED AT"), rows, right=("SIZE",)))


class _Listed(_Report):
    def __init__(self, path: str, entries: "list[Entry]") -> None:
        self._path, self._entries = path, entries

    def document(self) -> dict[str, Any]:
        return {"path": self._path, "entries": [_told(entry) for entry in self._entries]}

    def show(self) -> None:
        from datetime import UTC, datetime
        from stat import filemode

        from vmbackup.cli.output import local_time, say, table

        rows = []
        for e in self._entries:
            name = f"{e.name} -> {e.target}" if e.target else e.name
            time = local_time(datetime.fromtimestamp(e.mtime, UTC)) if 0 <= e.mtime < _LATEST else str(e.mtime)
            rows.append((filemode(e.mode), str(e.uid), str(e.gid), str(e.size), time, _flat(name)))
        say(table(("MODE", "UID", "GID", "SIZE", "MODIFIED", "NAME"), rows, right=("UID", "GID", "SIZE")))


def _told(entry: "Entry") -> dict[str, Any]:
    from datetime import UTC, datetime

    time = datetime.fromtimestamp(entry.mtime, UTC).isoformat() if 0 <= entry.mtime < _LATEST else None
    more = {"target": entry.target} if entry.target else {}
    mode = f"{entry.mode & 0o7777:04o}"
    told = {"name": entry.name, "type": entry.type, "mode": mode, "uid": entry.uid, "gid": entry.gid}
    return {**told, "size": entry.size, "modified": time, **more}


class _Fetched(_Report):
    def __init__(self, landed: "Landed", folder: Path) -> None:
        self._landed, self._folder = landed, folder

    def document(self) -> dict[str, Any]:
        fields = ("files", "directories", "links", "bytes")
        left_out = [{"path": each.path, "reason": each.reason} for each in self._landed.left_out]
        return {"output": str(self._folder), **{f: getattr(self._landed, f) for f in fields}, "left_out": left_out}

    def show(self) -> None:
        from vmbackup.cli.output import clean, counted, say
        from vmbackup.config.units import format_size

        landed = self._landed
        what = [counted(landed.files, "file"), counted(landed.links, "link")] if landed.links else []
        what = what or [counted(landed.files, "file")]
        say(f"{', '.join(what)}, {format_size(landed.bytes)}, in {clean(str(self._folder))}")

    def warnings(self, *, verbose: bool) -> list[str]:
        left_out = self._landed.left_out
        shown = left_out if verbose else left_out[:_SHOWN]
        lines = [f"left out: {_flat(each.path)} ({_flat(each.reason)})" for each in shown]
        rest = len(left_out) - len(shown)
        return [*lines, f"left out: {rest} more, which -v names"] if rest else lines
