"""A restore told beforehand: what it would read, and what would keep it from ending well; nothing is written."""

from vmbackup.engine.images.image_options import image_options
from vmbackup.engine.images.new_files import partial
from vmbackup.engine.restore.boot_files import BootFiles
from vmbackup.engine.restore.cost import Foreseen, disk_cost
from vmbackup.engine.restore.disk_job import DiskJob
from vmbackup.engine.restore.documents import new_documents
from vmbackup.engine.restore.flat import RestoreOptions, Targets, choose_targets
from vmbackup.engine.restore.free_space import SpaceNeeded
from vmbackup.engine.restore.onto import check_onto
from vmbackup.progress import SILENT
from vmbackup.repository.points import Point
from vmbackup.repository.records import FileRecord
from vmbackup.repository.repository import Repository


def forecast(repository: Repository, point: Point, options: RestoreOptions) -> list[Foreseen]:
    """What each disk would cost. Raises what the restore would raise before it writes.

    Also DamageError where a pack that it would read is not there, and TargetError where space would not suffice.
    """
    repository.check_may_read()
    targets = choose_targets(point, options)
    if targets.new and options.output is not None:
        new_documents(options.output, repository.documents(point))
    for one in targets.onto:
        check_onto(DiskJob(repository, point, one.disk, 1, SILENT), one, options.state_dir)
    places = {disk.target: options.new_path(disk) for disk in targets.new}
    places |= {one.disk.target: one.image.path for one in targets.onto}
    disks = [*targets.new, *(one.disk for one in targets.onto)]
    foreseen = [Foreseen(point, disk, places[disk.target], disk_cost(repository, point, disk)) for disk in disks]
    if targets.new and options.output is not None:
        foreseen += BootFiles(repository, point).foreseen(options.output)
    _check_space(targets, options, foreseen)
    return foreseen


def _check_space(targets: Targets, options: RestoreOptions, foreseen: list[Foreseen]) -> None:
    costs = {each.disk.target: each.cost for each in foreseen}
    space = SpaceNeeded()
    for disk in targets.new:
        path = options.new_path(disk)
        all_at_once = image_options(disk, options.wishes).preallocation in ("falloc", "full")
        needed = disk.virtual_size if all_at_once else costs[disk.target].data_bytes
        space.add(path, needed, partial(path.parent, path.name))
    for one in targets.onto:
        if not one.image.is_device:
            space.add(one.image.real, costs[one.disk.target].data_bytes)
    for each in foreseen:
        if isinstance(each.disk, FileRecord):
            space.add(each.path, each.cost.data_bytes)
    space.check()
