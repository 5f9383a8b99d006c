"""The one place that imports libvirt: lazily, silenced, with its event loop running before any connection."""

import functools
import threading
from typing import Any

from vmbackup.errors import HypervisorError


@functools.cache
def binding() -> Any:
    """Libvirt's Python module, its printing of errors switched off and its event loop running.

    Raises HypervisorError where the module is not installed.
    """
    try:
        import libvirt
    except ImportError as error:
        raise HypervisorError(
            f"the Python module libvirt cannot be imported: {error}",
            "install it with 'apt install python3-libvirt' or 'pip install libvirt-python'",
        ) from error
    libvirt.registerErrorHandler(lambda *_: None, None)
    # Must come before the first open: keep-alive and events of a connection hang on it.
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_run_events, args=(libvirt,), name="libvirt-events", daemon=True).start()
    return libvirt


def _run_events(libvirt: Any) -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except Exception:
            # A single failed turn (EINTR, a handle closed meanwhile) must not end all events for ever.
            threading.Event().wait(0.1)


def constant(name: str) -> int | None:
    """A constant of the binding, or None where this binding is older than it."""
    value: int | None = getattr(binding(), name, None)
    return value


# Error codes (virErrorNumber), by value: they are ABI, and older bindings lack some of the names.
INTERNAL_ERROR = 1
INVALID_CONN = 6
INVALID_ARG = 8
OPERATION_FAILED = 9
SYSTEM_ERROR = 38
RPC = 39
NO_DOMAIN = 42
AUTH_FAILED = 45
OPERATION_INVALID = 55
CONFIG_UNSUPPORTED = 67
OPERATION_TIMEOUT = 68
AGENT_UNSUPPORTED = 74
ACCESS_DENIED = 88
OPERATION_UNSUPPORTED = 84
XML_INVALID_SCHEMA = 92
AGENT_UNRESPONSIVE = 86
NO_DOMAIN_CHECKPOINT = 103
NO_DOMAIN_BACKUP = 104
CHECKPOINT_INCONSISTENT = 109
AGENT_COMMAND_TIMEOUT = 112  # from libvirt 11.2 on; AGENT_UNRESPONSIVE before
AGENT_COMMAND_FAILED = 113  # likewise; INTERNAL_ERROR before
