"""What the end of a run makes of checkpoints, on a guest that runs or is off."""

from typing import Any

from vmbackup.errors import NotFoundError, VmbackupError
from vmbackup.hypervisor.connection import Connection
from vmbackup.hypervisor.domains import handle
from vmbackup.hypervisor.source import DomainInfo
from vmbackup.hypervisor.tidy import checkpoints
from vmbackup.hypervisor.tidy.intents import Intent


def settle_checkpoints(
    connection: Connection, info: DomainInfo, intent: Intent, *, committed: bool, notes: list[str]
) -> bool:
    """Removes those that a committed run supersedes, or that of a run that failed. False, with a note, where one stays.

    A guest that is gone has none.
    """
    names = intent.superseded if committed else tuple(filter(None, [intent.checkpoint]))
    removed = [_remove(connection, info, intent, name, notes) for name in names]  # each, whatever becomes of others
    return all(removed)


def _remove(connection: Connection, info: DomainInfo, intent: Intent, name: str, notes: list[str]) -> bool:
    def remove(raw: Any) -> bool:
        return checkpoints.remove(handle(raw, info), name, intent.paths)

    try:
        connection.call("delete a checkpoint", remove, info.name)
    except NotFoundError:
        return True
    except VmbackupError as error:
        notes.append(f"could not delete checkpoint {name}: {error} (the next run tries again)")
        return False
    return True
