"""`vmbackup serve`: the disks of a restore point over NBD, read-only, until it is stopped."""

import contextlib
import json
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmbackup.cli.options import Command, State
from vmbackup.errors import UsageError

if TYPE_CHECKING:
    from ssl import SSLContext

    from vmbackup.nbd.address import ServerAddress
    from vmbackup.nbd.server import NbdServer
    from vmbackup.repository.points import Point
    from vmbackup.repository.repository import Repository

_M_ARENA_MAX = -8  # mallopt(3)
_STOPS = (signal.SIGTERM, signal.SIGINT)
_file = click.Path(dir_okay=False, path_type=Path)


@click.command("serve", cls=Command, short_help="Serve the disks of a restore point over NBD, read-only.")
@click.argument("point", metavar="POINT")
@click.option("--socket", metavar="PATH", type=_file, help="The unix socket; else one in a new folder, which is told.")
@click.option("--listen", metavar="HOST:PORT", help="TCP instead, as 127.0.0.1:10809; port 0 is a free one.")
@click.option("--tls-cert", metavar="FILE", type=_file, help="The server's certificate (PEM): clients must use TLS.")
@click.option("--tls-key", metavar="FILE", type=_file, help="Its private key (PEM).")
@click.option("--tls-client-ca", metavar="FILE", type=_file, help="Only clients with a certificate of this authority.")
@click.option("--hold", is_flag=True, help="No prune deletes what is served, also when it is forgotten meanwhile.")
@click.option("--saved", metavar="FILE", type=_file, hidden=True, help="Keeps the point's object for another start.")
@click.option("--cache", metavar="SIZE", default="128MiB", show_default=True, help="Decoded data held in memory.")
@click.pass_obj
def command(
    state: State,
    point: str,
    socket: Path | None,
    listen: str | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
    hold: bool,
    saved: Path | None,
    cache: str,
) -> int:
    """Serve the disks of POINT over NBD, read-only, an export a disk, until SIGTERM or Ctrl-C.

    One line of JSON on standard output tells that clients can connect, and where. POINT is an id, a prefix of it,
    DOMAIN@latest or DOMAIN@TIME. While it is served, do not forget it and prune, or --hold it.
    """
    from vmbackup.cli import access
    from vmbackup.engine.backup.saved_point import open_point
    from vmbackup.engine.serve.served import ServedPoint
    from vmbackup.nbd.server import NbdServer

    if socket is not None and listen is not None:
        raise UsageError("--socket and --listen exclude each other", "leave one of them out")
    cache_bytes = _cache_bytes(cache)
    tls = _tls(tls_cert, tls_key, tls_client_ca)
    config = access.load_config(state)
    with contextlib.ExitStack() as stack:
        address = _address(socket, listen, stack)
        repository = stack.enter_context(access.opened_repository(config, state.repository))
        found = open_point(repository, repository.survey(), point, saved)
        _share_memory()
        stack.enter_context(_stops_held_back())  # before the first thread: they inherit it
        if hold:
            found = _held(state, repository, found, saved, stack)
        served = stack.enter_context(contextlib.closing(ServedPoint(repository, found, cache_bytes=cache_bytes)))
        exports = dict(served.exports)
        if len(exports) == 1:  # for a client that names none
            exports[""] = next(iter(exports.values()))
        server = stack.enter_context(NbdServer(exports, address, tls=tls))
        _warn_of_the_open(server, tls)
        _ready(state, server, found, served.cache.limit, tls=tls is not None)
        signal.sigwait(_STOPS)
    return 0


def _held(
    state: State, repository: "Repository", point: "Point", saved: Path | None, stack: contextlib.ExitStack
) -> "Point":
    """The point, which stays to the end: it was not forgotten before the hold on it."""
    from vmbackup.cli import access
    from vmbackup.engine.backup.hold import Hold
    from vmbackup.engine.backup.saved_point import open_point, save_point
    from vmbackup.engine.identity import host_identity

    progress = stack.enter_context(access.progress(state))
    stack.enter_context(Hold(repository, point.lineage.group, host_identity(), progress))
    found = open_point(repository, repository.survey(), point.key, saved)
    if saved is not None:
        save_point(repository, found, saved)
    return found


def _cache_bytes(text: str) -> int:
    from vmbackup.config.units import InvalidValue, parse_size

    try:
        return parse_size(text)
    except InvalidValue as error:
        raise UsageError(f"--cache: {error}", error.hint) from None


def _address(socket: Path | None, listen: str | None, stack: contextlib.ExitStack) -> "ServerAddress":
    from vmbackup.nbd.address import UnixAddress, parse_tcp

    if listen is not None:
        try:
            return parse_tcp(listen)
        except ValueError as error:
            raise UsageError(f"--listen {listen}: {error}", "write HOST:PORT, as in --listen 127.0.0.1:10809") from None
    if socket is None:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vmbackup-serve-"))
        socket = Path(folder, "nbd.sock")
    return UnixAddress(str(socket.absolute()))


def _tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> "SSLContext | None":
    import ssl

    if cert is None and key is None and client_ca is None:
        return None
    if cert is None or key is None:
        raise UsageError("TLS needs both --tls-cert and --tls-key", "name the certificate and its private key")
    for file in filter(None, (cert, key, client_ca)):
        _check_readable(file)  # OpenSSL does not say which of them it could not read
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    path = cert
    try:
        context.load_cert_chain(cert, key)
        if client_ca is not None:
            path = client_ca
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except ssl.SSLError as error:
        files = f"{cert} and {key} are" if path is cert else f"{path} is"
        hint = "all must be PEM, and the key that of the certificate"
        raise UsageError(f"{files} of no use for TLS: {error.reason}", hint) from None
    return context


def _check_readable(path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        hint = "name PEM files that are there and that the user who runs vmbackup may read"
        raise UsageError(f"cannot read {path}: {error.strerror}", hint) from None


def _share_memory() -> None:
    """All threads take memory from one heap: what one of them frees of the cache, the next one uses.

    With a heap a thread, as glibc has it, a cache of 128 MiB took 245 MB of memory; with one 150, at the same speed.
    """
    import ctypes

    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


@contextlib.contextmanager
def _stops_held_back() -> Iterator[None]:
    """SIGTERM and Ctrl-C wait until they are asked for: nothing is broken off in the middle."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _warn_of_the_open(server: "NbdServer", tls: "SSLContext | None") -> None:
    from vmbackup.cli.output import warn

    if server.address.is_local:
        return
    if tls is None:
        warn(f"{server.address} is open: who reaches it reads these disks, and the network sees them in plain text")
        warn("listen at 127.0.0.1 or a --socket, or use --tls-cert, --tls-key and --tls-client-ca")
    elif not tls.verify_mode:
        warn(f"{server.address} is open: who reaches it reads these disks; --tls-client-ca lets in known clients only")


def _ready(state: State, server: "NbdServer", point: "Point", cache_bytes: int, *, tls: bool) -> None:
    """The line for programs, on standard output with or without --json; the rest is for people."""
    from vmbackup.cli.output import clean, table
    from vmbackup.config.units import format_size

    uris = {disk.target: server.address.uri(disk.target, tls=tls) for disk in point.disks}
    line = {"ready": True, "address": str(server.address), "exports": list(uris), "uris": uris, "point": point.id}
    if not (state.json or state.quiet):
        click.echo(f"{clean(point.domain)} as of {point.id}, read-only, until Ctrl-C or SIGTERM:", err=True)
        rows = [(disk.target, format_size(disk.virtual_size), uris[disk.target]) for disk in point.disks]
        click.echo(table(("DISK", "SIZE", "ADDRESS"), rows, right=("SIZE",)), err=True)
        click.echo(f"At most {format_size(cache_bytes)} of decoded data are held in memory.", err=True)
    click.echo(json.dumps(line | {"cache_bytes": cache_bytes}))
