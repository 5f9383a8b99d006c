"""The operator's commands around the begin of a guest that is off: those on this host, for nothing runs inside it."""

from dataclasses import replace

from vmbackup.hypervisor.connection import Connection
from vmbackup.hypervisor.live.agent import GuestAgent
from vmbackup.hypervisor.live.guard import Watchdog
from vmbackup.hypervisor.live.hooks import GuestHooks
from vmbackup.hypervisor.source import DomainInfo, Hooks, QuiescePolicy


class OffHooks:
    """The hooks of one begin. A watchdog runs those after, if this process dies before it does."""

    def __init__(self, connection: Connection, info: DomainInfo, policy: QuiescePolicy, hooks: Hooks) -> None:
        self._uri, self._uuid, self._required = connection.uri, info.uuid, policy == "required"
        self._left_out = bool(hooks.guest_before or hooks.guest_after)
        outside = replace(hooks, guest_before=(), guest_after=())
        self._hooks = GuestHooks(outside, info, GuestAgent(connection, info.uuid))
        self._watchdog: Watchdog | None = None

    @property
    def note(self) -> str:
        """What there is to say of hooks inside the guest; empty where it has none."""
        return "; the hooks inside it were not run" if self._left_out else ""

    def before(self) -> list[str]:
        """Runs those before: what went wrong. Raises QuiesceError for that where the policy is `required`."""
        if not self._hooks:
            return []
        if owed := self._hooks.owed():
            self._watchdog = Watchdog(self._uri, self._uuid)
            self._watchdog.hooks(owed)
        return self._hooks.before(required=self._required)

    def after(self) -> list[str]:
        """Runs those after, where they are due: what went wrong."""
        try:
            return self._hooks.after()
        finally:
            watchdog, self._watchdog = self._watchdog, None
            if watchdog is not None:
                watchdog.stop()
