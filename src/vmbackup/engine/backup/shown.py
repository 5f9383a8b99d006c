"""A guest's own XML shows its newest restore point, where the operator wants that. It never fails a backup."""

from vmbackup.hypervisor import Host
from vmbackup.hypervisor.shown import Shown
from vmbackup.hypervisor.source import DomainInfo
from vmbackup.progress import Progress
from vmbackup.repository.points import Point
from vmbackup.repository.repository import Repository


def show(
    host: Host, repository: Repository, domain: DomainInfo, point: Point, name: str | None, progress: Progress
) -> None:
    """After the commit. `name` is the repository's in the configuration, None where nothing is to be shown."""
    if name is None:
        return
    try:
        done = host.show(domain, Shown(name, str(repository.store.place), point.id, point.time))
        trouble = "" if done else "another job holds the domain"
    except Exception as error:  # the restore point is durable, and its record says all of this too
        trouble = str(error)
    if trouble:
        progress.note(f"the XML of {domain.name} does not show its new restore point: {trouble}")
