"""An overlay in the making: a qcow2 image that holds what differs from the image that will lie below it."""

import json
import os
from pathlib import Path

from vmbackup.engine.images.image_file import caching
from vmbackup.engine.images.nbd_target import NbdTarget
from vmbackup.engine.images.qemu_img import run_tool
from vmbackup.engine.images.target_errors import told

_CLUSTER = 65536  # bytes, QEMU's own choice


class OverlayTarget(NbdTarget):
    """A new overlay on `backing`, the name of a qcow2 image in the same folder, which need not be there yet.

    It is written without being read through: each write must cover whole clusters, which are no larger than a chunk.
    Zeros that are written hide what lies below.
    """

    def __init__(
        self, path: Path, size: int, attributes: dict[str, str], connections: int, *, backing: str, chunk_size: int
    ) -> None:
        cluster = min(int(attributes.get("cluster_size", _CLUSTER)), chunk_size)
        # compat 1.1, whatever the original is: only there are clusters of zeros.
        options = f"compat=1.1,cluster_size={cluster}"
        command = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-o", options, "-b", backing, "-F", "qcow2"]
        run_tool([*command, str(path), str(size)], path)
        with told(path):
            os.chmod(path, 0o600)
        image = {"driver": "qcow2", "backing": None, "file": {"driver": "file", "filename": str(path)}}
        super().__init__(path, [*caching(path), "--discard=unmap", f"json:{json.dumps(image)}"], connections)
