"""The new image of a disk, of the kind that was asked for."""

from pathlib import Path

from vmbackup.engine.image_options import ImageOptions
from vmbackup.engine.qcow2_target import Qcow2Target
from vmbackup.engine.raw_target import RawTarget
from vmbackup.engine.targets import Target


def new_target(path: Path, size: int, options: ImageOptions, workers: int, *, resume: bool = False) -> Target:
    """An image in the making; `resume`: a part of it lies there. Raises TargetError."""
    if options.driver == "raw":
        return RawTarget(path, size, options.preallocation, resume=resume)
    return Qcow2Target(path, size, options, workers, resume=resume)
