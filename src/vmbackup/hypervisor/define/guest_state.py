"""UEFI variables and TPM state put where libvirt looks for them, and taken away again if all comes to nothing."""

import contextlib
import itertools
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from vmbackup.errors import TargetError
from vmbackup.hypervisor.documents import TPM_FOLDERS, TPM_STATES, UEFI_VARIABLES, tpm_root
from vmbackup.hypervisor.names import CheckpointName
from vmbackup.hypervisor.rebuild.wishes import Rebuilt

_PASSABLE, _PRIVATE_FOLDER, _PRIVATE_FILE = 0o711, 0o700, 0o600


class GuestState:
    """Files beside the disks of one guest. `domain_folders`: libvirt's folder for domains (/var/lib/libvirt/qemu)."""

    def __init__(self, domain_folders: str) -> None:
        self._folders = Path(os.path.abspath(domain_folders))
        self._tpms = Path(tpm_root(domain_folders))
        self._made: list[Path] = []

    def nvram_path(self, name: str) -> Path:
        """Where the variables of a new guest go: libvirt's own name for them, or the next that is free."""
        folder = self._folders / "nvram"
        names = itertools.chain([f"{name}_VARS.fd"], (f"{name}-{n}_VARS.fd" for n in itertools.count(2)))
        return next(folder / each for each in names if not os.path.lexists(folder / each))

    def check(self, rebuilt: Rebuilt) -> None:
        """Raises TargetError where something of an earlier guest of that name or UUID would become the new one's."""
        tpm = self._tpms / rebuilt.uuid
        if rebuilt.tpm_version and os.path.lexists(tpm):
            raise TargetError(f"the TPM state of an earlier guest lies in {tpm}", f"move it away: mv {tpm} {tpm}.old")
        saved = self._folders / "save" / f"{rebuilt.name}.save"
        if os.path.lexists(saved):
            raise TargetError(
                f"the saved memory of an earlier guest lies in {saved}, and would spoil the restored disks",
                f"move it away: mv {saved} {saved}.old",
            )

    def put(self, rebuilt: Rebuilt, documents: Mapping[str, bytes], owner: tuple[int, int] | None) -> None:
        """Writes and syncs what the guest has of both. Raises TargetError, with nothing left."""
        try:
            if rebuilt.nvram is not None and UEFI_VARIABLES in documents:
                self._folder(rebuilt.nvram.parent, _PASSABLE)
                self._file(rebuilt.nvram, documents[UEFI_VARIABLES], owner)
            if rebuilt.tpm_version and (name := TPM_STATES[rebuilt.tpm_version]) in documents:
                self._folder(self._tpms, _PASSABLE)
                self._folder(self._tpms / rebuilt.uuid, _PASSABLE)
                folder = self._tpms / rebuilt.uuid / TPM_FOLDERS[rebuilt.tpm_version]
                self._folder(folder, _PRIVATE_FOLDER)
                # Its folder is libvirt's to give to swtpm's user at the guest's start.
                self._file(folder / name, documents[name], None)
        except OSError as error:
            self.undo()
            raise TargetError(f"cannot write {error.filename}: {error.strerror}", "run this as root") from error

    def _folder(self, path: Path, mode: int) -> None:
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode)
            path.chmod(mode)  # whatever the umask
            self._made.append(path)

    def _file(self, path: Path, data: bytes, owner: tuple[int, int] | None) -> None:
        with open(path, "xb", opener=lambda name, flags: os.open(name, flags, _PRIVATE_FILE)) as file:
            self._made.append(path)
            file.write(data)
            file.flush()
            if owner is not None and os.geteuid() == 0:
                os.fchown(file.fileno(), *owner)
            os.fsync(file.fileno())

    def undo(self) -> None:
        """Takes away what `put` wrote, and what a TPM at work made of it. Never raises."""
        for path in reversed(self._made):
            with contextlib.suppress(OSError):
                if path.parent == self._tpms:
                    shutil.rmtree(path)
                elif path.is_dir():
                    path.rmdir()
                else:
                    path.unlink()
        self._made = []

    def drop_stale_checkpoints(self, name: str) -> None:
        """Removes what is kept of our checkpoints of an earlier guest of that name.

        libvirt 9.0 does so itself as it defines a guest; else it would read them at its next start, and the restored
        disks have no such bitmaps.
        """
        for path in (self._folders / "checkpoint" / name).glob("*.xml"):
            if CheckpointName.parse(path.stem) is not None:
                path.unlink(missing_ok=True)
