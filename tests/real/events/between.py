"""What may happen to a guest between two backups. Each sets why the next one reads its disk whole, if it does."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.lab import machine
from tests.lab.disk import MiB
from tests.real.events.scene import BLOCK, EXTRA, Scene

_METADATA_ONLY = 2
_UNDEFINE = 16 | 2  # with the metadata of checkpoints, and of managed saves


def stopped_and_started(scene: Scene) -> None:
    scene.restart()


def qemu_killed(scene: Scene) -> None:
    """Its bitmap is in memory only, or in the image and marked as in use."""
    if scene.random.random() < 0.5:
        scene.restart()
    scene.horse.write("vda", MiB, BLOCK, 0x66)
    scene.horse.flush("vda")
    scene.horse.kill()
    scene.horse.start()
    scene.expected = "bitmap_broken"


def power_lost(scene: Scene) -> None:
    """QEMU and libvirtd die at once."""
    scene.horse.flush("vda")
    pid = scene.horse.pid
    scene.end_libvirt(signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    scene.start_libvirt()
    scene.wait(lambda: not scene.horse.running, "libvirt to see QEMU's death")
    scene.horse.start()
    scene.expected = "bitmap_broken"


def bitmap_inconsistent(scene: Scene) -> None:
    """A tool of QEMU died while it had the image."""
    path = scene.horse.path("vda")
    with scene.off():
        socket = scene.horse.folder / "tool.sock"
        command = [machine.program("qemu-nbd"), "-t", "-f", "qcow2", "-k", str(socket), str(path)]
        with subprocess.Popen(command) as tool:
            scene.wait(socket.exists, "qemu-nbd")
            url = f"nbd+unix:///?socket={socket}"
            program = [machine.program("qemu-io"), "-f", "raw", "-c", "write -q -P 119 1M 64k", "-c", "flush", url]
            subprocess.run(program, check=True, capture_output=True)
            tool.kill()
        socket.unlink(missing_ok=True)
    scene.expected = "bitmap_broken"


def bitmap_removed(scene: Scene) -> None:
    with scene.off():
        remove = [machine.program("qemu-img"), "bitmap", "--remove", str(scene.horse.path("vda"))]
        for name in (name for name in scene.horse.checkpoints() if name.startswith("vmbackup-")):
            subprocess.run([*remove, name], check=True, capture_output=True)
    scene.expected = "bitmap_broken"


def metadata_lost(scene: Scene) -> None:
    for checkpoint in scene.domain.listAllCheckpoints(0):
        if checkpoint.getName().startswith("vmbackup-"):
            checkpoint.delete(_METADATA_ONLY)


def checkpoint_deleted(scene: Scene) -> None:
    """`virsh checkpoint-delete`, by somebody who wanted to take a snapshot."""
    for checkpoint in scene.domain.listAllCheckpoints(0):
        if checkpoint.getName().startswith("vmbackup-"):
            checkpoint.delete(0)
            scene.expected = "checkpoint_gone"


def image_replaced(scene: Scene) -> None:
    """By another file of the same name: a copy of what it was some time ago, or of somebody else's."""
    path = scene.horse.path("vda")
    with scene.off():
        other = path.with_suffix(".other")
        source = scene.older if scene.older and scene.older.exists() else path
        _convert(source, other)
        other.replace(path)
    scene.expected = "other_image"


def image_overwritten(scene: Scene) -> None:
    """The file stays, its content is another image's (`cp`)."""
    path = scene.horse.path("vda")
    with scene.off():
        other = path.with_suffix(".other")
        _convert(path, other)
        write = ["-c", f"write -q -P 68 {2 * MiB} {BLOCK}"]
        subprocess.run([machine.program("qemu-io"), "-f", "qcow2", *write, str(other)], check=True, capture_output=True)
        path.write_bytes(other.read_bytes())
        other.unlink()
    scene.expected = "bitmap_broken"


def rolled_back(scene: Scene) -> None:
    """An older copy of the image with its older bitmaps is put back over it (`cp`)."""
    path = scene.horse.path("vda")
    with scene.off():
        old, bitmaps = path.read_bytes(), {name for name in scene.horse.checkpoints() if name.startswith("vmbackup-")}
    point = scene.kit.backup(scene.horse)
    scene.succeed(point, scene.contents())
    with scene.off():
        path.write_bytes(old)
    scene.orphans |= bitmaps
    scene.expected = "bitmap_broken"


def undefined_and_defined(scene: Scene) -> None:
    xml = scene.domain.XMLDesc(2)
    if scene.random.random() < 0.5:
        scene.domain.undefineFlags(_UNDEFINE)  # it runs on, and is transient
        scene.horse.redefine(xml)
        return
    scene.horse.stop()
    scene.domain.undefineFlags(_UNDEFINE)
    scene.horse.redefine(xml)
    scene.foreign.clear()
    scene.horse.start()


def libvirtd_restarted(scene: Scene) -> None:
    scene.end_libvirt(scene.random.choice((signal.SIGTERM, signal.SIGKILL)))
    scene.start_libvirt()


def foreign_checkpoint(scene: Scene) -> None:
    """Another tool's; its older one goes."""
    name = f"theirs-{len(scene.kept)}-{scene.random.randrange(1 << 30)}"
    while scene.foreign:
        _delete(scene.domain.checkpointLookupByName(scene.foreign.pop()))
    scene.domain.checkpointCreateXML(f"<domaincheckpoint><name>{name}</name></domaincheckpoint>", 0)
    scene.foreign.append(name)


def disk_plugged(scene: Scene) -> None:
    if EXTRA not in scene.horse.disks:
        scene.plug()
    scene.horse.write(EXTRA, 0, BLOCK, scene.random.randrange(1, 256))


def disk_pulled(scene: Scene) -> None:
    if EXTRA in scene.horse.disks:
        scene.unplug()


def _delete(checkpoint: Any) -> None:
    """Also one whose bitmap was lost meanwhile."""
    import libvirt

    try:
        checkpoint.delete(0)
    except libvirt.libvirtError:
        checkpoint.delete(_METADATA_ONLY)


def _convert(source: Path, target: Path) -> None:
    command = [machine.program("qemu-img"), "convert", "-f", "qcow2", "-O", "qcow2", str(source), str(target)]
    subprocess.run(command, check=True, capture_output=True)
    os.chown(target, *machine.qemu_user())


BETWEEN: dict[str, Callable[[Scene], None]] = {
    act.__name__: act
    for act in (
        stopped_and_started,
        qemu_killed,
        power_lost,
        bitmap_inconsistent,
        bitmap_removed,
        metadata_lost,
        checkpoint_deleted,
        image_replaced,
        image_overwritten,
        rolled_back,
        undefined_and_defined,
        libvirtd_restarted,
        foreign_checkpoint,
        disk_plugged,
        disk_pulled,
    )
}
