"""The handshake: from a fresh connection to an export that is ready for requests."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from vmbackup.nbd import protocol as p
from vmbackup.nbd.channel import Channel
from vmbackup.nbd.errors import (
    ConnectionLost,
    ExportMissing,
    Fault,
    HandshakeRefused,
    MetaContextMissing,
    broken,
    clean_text,
)
from vmbackup.nbd.tls import ClientTls, TlsChannel, ask_for_tls

_REFUSALS = {
    p.REP_ERR_UNSUP: "not supported",
    p.REP_ERR_POLICY: "forbidden by the server's policy",
    p.REP_ERR_INVALID: "invalid request",
    p.REP_ERR_TLS_REQD: "the server insists on TLS",
    p.REP_ERR_UNKNOWN: "no such export",
    p.REP_ERR_SHUTDOWN: "the server is shutting down",
}
_OPTION_NAMES = {
    p.OPT_STRUCTURED_REPLY: "structured replies",
    p.OPT_SET_META_CONTEXT: "meta contexts",
    p.OPT_GO: "the export",
    p.OPT_STARTTLS: "TLS",
}


@dataclass
class ExportDetails:
    """What the server told about the export. Sizes in bytes; `contexts` maps ids to names."""

    size: int = -1
    flags: int = 0
    block_size: tuple[int, int, int] = (1, 4096, p.MAX_REQUEST)  # the specification's defaults
    contexts: dict[int, str] = field(default_factory=dict)


def messages(export: str, contexts: Sequence[str]) -> list[bytes]:
    """All that the client says in the handshake, in order: its flags, structured replies, meta contexts, GO."""
    name = _string(export, "export name")
    said = [p.CLIENT_FLAGS.pack(p.FLAG_FIXED_NEWSTYLE), _option(p.OPT_STRUCTURED_REPLY, b"")]
    if contexts:
        queries = [_string(context, "meta context") for context in contexts]
        data = [p.U32.pack(len(name)), name, p.U32.pack(len(queries))]
        for query in queries:
            data += [p.U32.pack(len(query)), query]
        said.append(_option(p.OPT_SET_META_CONTEXT, b"".join(data)))
    info = (p.U32.pack(len(name)), name, p.U16.pack(1), p.U16.pack(p.INFO_BLOCK_SIZE))
    said.append(_option(p.OPT_GO, b"".join(info)))
    return said


def start_tls(channel: Channel, tls: ClientTls) -> TlsChannel:
    """The greeting and the change to TLS; `negotiate` goes on from there. Errors are raised as a Fault."""
    _take_greeting(channel)
    return ask_for_tls(channel, tls, lambda plain: _acknowledged(plain, p.OPT_STARTTLS))


def negotiate(
    channel: Channel, export: str, contexts: Sequence[str], *, said: bool = False, greeted: bool = False
) -> ExportDetails:
    """Fixed newstyle: structured replies, meta contexts, GO. Errors are raised as a Fault.

    `said`: the channel has sent all the messages already, and only the answers are taken. `greeted`: flags were
    exchanged before.
    """
    details = ExportDetails()
    to_say = [] if said else messages(export, contexts)[::-1]

    def say() -> None:
        if to_say:
            _send(channel, to_say.pop())

    if greeted:
        to_say.pop()
    else:
        _take_greeting(channel)
        say()
    say()
    _acknowledged(channel, p.OPT_STRUCTURED_REPLY)
    if contexts:
        say()
        _take_contexts(channel, contexts, details)
    say()
    _take_export(channel, details)
    return details


def _take_greeting(channel: Channel) -> None:
    greeting = _receive(channel, 8)
    if greeting != p.NBDMAGIC:
        raise broken("it is no NBD server (it did not greet with NBDMAGIC)")
    style = _receive(channel, 8)
    if style == p.OLDSTYLE_MAGIC:
        raise Fault(HandshakeRefused, "the server speaks only the oldstyle handshake")
    if style != p.IHAVEOPT:
        raise broken("unknown style of handshake")
    flags = int.from_bytes(_receive(channel, 2), "big")
    if not flags & p.FLAG_FIXED_NEWSTYLE:
        raise Fault(HandshakeRefused, "the server does not speak the fixed newstyle handshake")


def _take_contexts(channel: Channel, names: Sequence[str], details: ExportDetails) -> None:
    for _ in range(len(names) + p.MAX_OPTION_REPLIES):
        kind, payload = _reply(channel, p.OPT_SET_META_CONTEXT)
        if kind == p.REP_ACK:
            missing = tuple(name for name in names if name not in details.contexts.values())
            if missing:
                reason = f"the server does not offer {', '.join(missing)}"
                raise Fault(MetaContextMissing, reason, missing=missing)
            return
        if kind != p.REP_META_CONTEXT or len(payload) <= 4:
            raise broken(f"reply of type {kind} and {len(payload)} bytes to the request for meta contexts")
        number, name = int.from_bytes(payload[:4], "big"), payload[4:].decode("utf-8", "replace")
        if name not in names or name in details.contexts.values() or number in details.contexts:
            raise broken(f"meta context {clean_text(payload[4:])!r} was not asked for, or came twice")
        details.contexts[number] = name
    raise broken("endless replies to the request for meta contexts")


def _take_export(channel: Channel, details: ExportDetails) -> None:
    for _ in range(p.MAX_OPTION_REPLIES):
        kind, payload = _reply(channel, p.OPT_GO)
        if kind == p.REP_ACK:
            if details.size < 0:
                raise broken("the export's size was not told")
            return
        if kind != p.REP_INFO or len(payload) < 2:
            raise broken(f"reply of type {kind} and {len(payload)} bytes to the request for the export")
        _take_info(payload, details)
    raise broken("endless replies to the request for the export")


def _take_info(payload: bytes, details: ExportDetails) -> None:
    kind = int.from_bytes(payload[:2], "big")
    if kind == p.INFO_EXPORT:
        if len(payload) != p.EXPORT_INFO.size:
            raise broken(f"export information of {len(payload)} bytes")
        _, details.size, details.flags = p.EXPORT_INFO.unpack(payload)
        if details.size >= 1 << 63:
            raise broken(f"an export of {details.size} bytes")
        if not details.flags & p.Transmission.HAS_FLAGS:
            raise broken("transmission flags without HAS_FLAGS")
    elif kind == p.INFO_BLOCK_SIZE:
        if len(payload) != p.BLOCK_SIZE_INFO.size:
            raise broken(f"block size information of {len(payload)} bytes")
        _, least, preferred, most = p.BLOCK_SIZE_INFO.unpack(payload)
        if least.bit_count() != 1 or least > 64 << 10 or preferred < least or most < preferred:
            raise broken(f"block sizes {least}, {preferred}, {most}")
        details.block_size = (least, preferred, most)


def _acknowledged(channel: Channel, option: int) -> None:
    kind, _ = _reply(channel, option)
    if kind != p.REP_ACK:
        raise broken(f"reply of type {kind} to the request for {_OPTION_NAMES[option]}")


def _reply(channel: Channel, option: int) -> tuple[int, bytes]:
    """The next reply to the option: its type and data. A refusal is raised."""
    magic, echoed, kind, length = p.OPTION_REPLY.unpack(_receive(channel, p.OPTION_REPLY.size))
    if magic != p.OPTION_REPLY_MAGIC or echoed != option:
        raise broken(f"a wrong magic or option in the reply to the request for {_OPTION_NAMES[option]}")
    if length > p.MAX_OPTION_REPLY:
        raise broken(f"an option reply of {length} bytes")
    payload = _receive(channel, length)
    if kind & p.REP_ERROR_BIT:
        raise _refusal(option, kind, clean_text(payload))
    return kind, payload


def _refusal(option: int, kind: int, text: str) -> Fault:
    reason = _REFUSALS.get(kind, f"error {kind & ~p.REP_ERROR_BIT}")
    reason = f"the server refused {_OPTION_NAMES[option]}: {reason}" + (f" ({text})" if text else "")
    if kind == p.REP_ERR_UNKNOWN:
        return Fault(ExportMissing, reason, "nbdinfo --list shows the exports of a server")
    if kind == p.REP_ERR_SHUTDOWN:
        return Fault(ConnectionLost, reason)
    return Fault(HandshakeRefused, reason)


def _string(text: str, what: str) -> bytes:
    raw = text.encode()
    if len(raw) > p.MAX_STRING:
        raise ValueError(f"{what} of {len(raw)} bytes; the protocol allows {p.MAX_STRING}")
    return raw


def _option(option: int, data: bytes) -> bytes:
    return p.OPTION.pack(p.IHAVEOPT, option, len(data)) + data


def _send(channel: Channel, message: bytes) -> None:
    channel.send((message,), len(message), _unexpected)


def _unexpected() -> None:
    raise broken("it sent something before it was asked")


def _receive(channel: Channel, length: int) -> bytes:
    """Receives `length` bytes, which the caller has bounded."""
    channel.check()
    data = bytearray(length)
    if length:
        channel.fill(data, length)
    return bytes(data)
