"""Constants and layouts of the NBD protocol, in the order of its specification.

Source: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
"""

from enum import IntFlag
from struct import Struct
from typing import Final

# Handshake, fixed newstyle
NBDMAGIC: Final = b"NBDMAGIC"
IHAVEOPT: Final = b"IHAVEOPT"
OLDSTYLE_MAGIC: Final = bytes.fromhex("0000420281861253")
FLAG_FIXED_NEWSTYLE: Final = 1
FLAG_NO_ZEROES: Final = 2
GREETING: Final = Struct(">8s8sH")  # NBDMAGIC, IHAVEOPT, handshake flags
CLIENT_FLAGS: Final = Struct(">I")
OPTION: Final = Struct(">8sII")  # IHAVEOPT, option, length of data
OPTION_REPLY: Final = Struct(">QIII")  # magic, option, reply type, length of data
OPTION_REPLY_MAGIC: Final = 0x3E889045565A9
U16: Final = Struct(">H")
U32: Final = Struct(">I")

# Options
OPT_EXPORT_NAME: Final = 1
OPT_ABORT: Final = 2
OPT_LIST: Final = 3
OPT_STARTTLS: Final = 5
OPT_INFO: Final = 6
OPT_GO: Final = 7
OPT_STRUCTURED_REPLY: Final = 8
OPT_LIST_META_CONTEXT: Final = 9
OPT_SET_META_CONTEXT: Final = 10
EXPORT_NAME_REPLY: Final = Struct(">QH")  # size, transmission flags; the only answer to OPT_EXPORT_NAME
EXPORT_NAME_ZEROES: Final = 124  # bytes behind it, unless FLAG_NO_ZEROES

# Option replies
REP_ACK: Final = 1
REP_SERVER: Final = 2
REP_INFO: Final = 3
REP_META_CONTEXT: Final = 4
REP_ERROR_BIT: Final = 1 << 31
REP_ERR_UNSUP: Final = REP_ERROR_BIT + 1
REP_ERR_POLICY: Final = REP_ERROR_BIT + 2
REP_ERR_INVALID: Final = REP_ERROR_BIT + 3
REP_ERR_TLS_REQD: Final = REP_ERROR_BIT + 5
REP_ERR_UNKNOWN: Final = REP_ERROR_BIT + 6
REP_ERR_SHUTDOWN: Final = REP_ERROR_BIT + 7

REP_ERR_TOO_BIG: Final = REP_ERROR_BIT + 9

# Kinds of REP_INFO
INFO_EXPORT: Final = 0
INFO_NAME: Final = 1
INFO_BLOCK_SIZE: Final = 3
EXPORT_INFO: Final = Struct(">HQH")  # INFO_EXPORT, size, transmission flags
BLOCK_SIZE_INFO: Final = Struct(">HIII")  # INFO_BLOCK_SIZE, minimum, preferred, maximum


class Transmission(IntFlag):
    """Transmission flags: what the export can do."""

    HAS_FLAGS = 1
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_CACHE = 1 << 10


# Requests
REQUEST: Final = Struct(">IHHQQI")  # magic, command flags, command, cookie, offset, length
REQUEST_MAGIC: Final = 0x25609513
CMD_READ: Final = 0
CMD_WRITE: Final = 1
CMD_DISC: Final = 2
CMD_FLUSH: Final = 3
CMD_TRIM: Final = 4
CMD_CACHE: Final = 5
CMD_WRITE_ZEROES: Final = 6
CMD_BLOCK_STATUS: Final = 7
CMD_FLAG_NO_HOLE: Final = 1 << 1
CMD_FLAG_DF: Final = 1 << 2
CMD_FLAG_REQ_ONE: Final = 1 << 3
COMMAND_NAMES: Final = {
    CMD_READ: "read",
    CMD_WRITE: "write",
    CMD_FLUSH: "flush",
    CMD_TRIM: "trim",
    CMD_WRITE_ZEROES: "write-zeroes",
    CMD_BLOCK_STATUS: "block status",
}

# Replies
SIMPLE_REPLY: Final = Struct(">IIQ")  # magic, errno, cookie
SIMPLE_REPLY_MAGIC: Final = 0x67446698
CHUNK: Final = Struct(">IHHQ")  # magic, chunk flags, type, cookie; as long as a simple reply
CHUNK_MAGIC: Final = 0x668E33EF
CHUNK_FLAG_DONE: Final = 1
CHUNK_NONE: Final = 0
CHUNK_OFFSET_DATA: Final = 1
CHUNK_OFFSET_HOLE: Final = 2
CHUNK_BLOCK_STATUS: Final = 5
CHUNK_ERROR_BIT: Final = 1 << 15
CHUNK_ERROR: Final = CHUNK_ERROR_BIT + 1
DATA: Final = Struct(">IQ")  # the chunk's length of payload; offset; then the data
HOLE: Final = Struct(">IQI")  # the chunk's length of payload; offset, length
ERROR: Final = Struct(">IH")  # errno, length of message
EXTENT_SIZE: Final = 8  # bytes of an extent of a block status: u32 length, u32 status flags
EPERM: Final = 1  # error numbers on the wire are Linux', wherever the server runs
EIO: Final = 5
EINVAL: Final = 22
EOVERFLOW: Final = 75
ESHUTDOWN: Final = 108

# Meta contexts
BASE_ALLOCATION: Final = "base:allocation"
BASE_NAMESPACE: Final = "base:"
STATE_HOLE: Final = 1
STATE_ZERO: Final = 2  # base:allocation: reads as zeros (bit 0, HOLE, alone says nothing about content)
STATE_DIRTY: Final = 1  # qemu:dirty-bitmap:NAME

# Limits, so that nothing a server says is allocated or looped over unbounded
MAX_STRING: Final = 4096  # bytes; the specification's limit for names and messages
MAX_OPTION_REPLY: Final = MAX_STRING + 64  # bytes of data in one option reply
MAX_ERROR_PAYLOAD: Final = MAX_STRING + 64  # bytes of an error chunk
MAX_OPTION_REPLIES: Final = 64  # replies to one option, beyond one for each context asked for
MAX_REQUEST: Final = 32 << 20  # bytes read or written at once: QEMU's limit, and the specification's default
MAX_STATUS: Final = 2 << 30  # bytes a block status asks for: the largest power of two in 32 bits
MAX_STATUS_REPLY: Final = 4 + 8 * (1 << 20)  # bytes of a block status chunk: 2^20 extents, as specified
MAX_EXTENTS: Final = 128 << 10  # extents taken from one reply: as QEMU sends; the rest is asked for anew
SECTOR: Final = 512  # bytes; no source of ours has extents or pieces of a read that are smaller on average
