"""The new image of a disk, of the kind that was asked for."""

from pathlib import Path

from vmbackup.engine.images.direct_qcow2 import DirectQcow2Target
from vmbackup.engine.images.image_options import ImageOptions
from vmbackup.engine.images.qcow2_target import Qcow2Target, make_image
from vmbackup.engine.images.raw_target import RawTarget
from vmbackup.engine.images.targets import Target


def new_target(path: Path, size: int, options: ImageOptions, workers: int, *, resume: bool = False) -> Target:
    """An image in the making; `resume`: a part of it lies there. Raises TargetError."""
    if options.driver == "raw":
        return RawTarget(path, size, options.preallocation, resume=resume)
    if not resume and options.passphrase is None and options.preallocation == "off":
        make_image(path, size, options, None)
        if direct := DirectQcow2Target.of(path):
            return direct
    return Qcow2Target(path, size, options, workers, resume=resume)
