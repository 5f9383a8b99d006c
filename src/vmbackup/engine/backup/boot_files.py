"""The files of its host that a guest is started from, read into its restore point like disks."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence

from vmbackup.engine.backup.host_file import HostFile
from vmbackup.engine.pipeline.lost import lost_parts
from vmbackup.engine.pipeline.pipeline import Pipeline, drop_disk
from vmbackup.hypervisor.source import BootFile
from vmbackup.repository.nodes import Ref
from vmbackup.repository.records import FileRecord
from vmbackup.repository.run import Run

_READINGS = 2  # of a file that is written to meanwhile: who installs a kernel is done with it in a moment
_LOSS = "a guest restored from it starts only where that file is"


class BootFiles:
    """The files of one run. Those that cannot be read are noted: the disks are worth a restore point without them."""

    def __init__(self, run: Run, chunk_size: int, known: Sequence[FileRecord], *, trust: bool) -> None:
        """`known`: the parent's. `trust`: one that was not changed since is not read again."""
        self._run, self._chunk_size = run, chunk_size
        self._known = {record.path: record for record in known}
        self._trust = trust
        self._open: list[HostFile] = []
        self.saved: list[FileRecord] = []

    @contextlib.contextmanager
    def opened(self, files: Sequence[BootFile]) -> Iterator[int]:
        """Opens them all, to the end of the block; gives the bytes that there are to read. Never fails for a file."""
        with contextlib.ExitStack() as stack:
            for file in files:
                try:
                    found = HostFile(file)
                except (OSError, ValueError) as error:
                    self._note(file, _words(error))
                    continue
                stack.callback(found.close)
                self._open.append(found)
            yield sum(found.size for found in self._open if not self._is_known(found))

    def _is_known(self, found: HostFile) -> bool:
        """Whether the parent has it as it is."""
        old = self._known.get(found.file.path)
        if not self._trust or old is None or found.state is None:
            return False
        return (old.state, old.chunk_size) == (found.state, self._chunk_size)

    def read(self, pipeline: Pipeline) -> None:
        """Reads what was opened, as far as it must be. Raises DamageError where the parent's map of one is lost."""
        for found in self._open:
            if (record := self._saved(pipeline, found)) is not None:
                self.saved.append(record)
        for path in self._known.keys() - {record.path for record in self.saved}:
            drop_disk(self._run, self._known[path])

    def _saved(self, pipeline: Pipeline, found: HostFile) -> FileRecord | None:
        """None where it could not be read whole: then all is as if it had not been tried."""
        old = self._known.get(found.file.path)
        lost = lost_parts(self._run, old) if old else []
        if old and not lost and self._is_known(found):
            return self._record(found, old.root, 0)
        uses = Counter(self._run.uses)
        problem = ""
        for _ in range(_READINGS):
            try:
                found.look()
            except (OSError, ValueError) as error:
                problem = _words(error)
                break
            record = self._reading(pipeline, found, old)
            if found.is_same and not found.problem:
                return record
            problem = found.problem or "it was written to meanwhile"
            self._run.uses.clear()  # what was stored of it is in no map
            self._run.uses.update(uses)
        self._note(found.file, problem)
        return None

    def _reading(self, pipeline: Pipeline, found: HostFile, old: FileRecord | None) -> FileRecord:
        base = old
        if old and (old.size > found.size or old.chunk_size != self._chunk_size):  # its map cannot be kept
            drop_disk(self._run, old)
            base = None
        previous = old if old and old.chunk_size == self._chunk_size else None  # its chunks are found by place
        result = pipeline.read_disk(found, base.root if base else None, previous.root if previous else None)
        return self._record(found, result.root, result.counts.stored)

    def _record(self, found: HostFile, root: Ref, stored: int) -> FileRecord:
        file = found.file
        return FileRecord(file.path, file.kind, found.size, found.mode, found.state, self._chunk_size, root, stored)

    def _note(self, file: BootFile, why: str) -> None:
        self._run.warnings.append(f"{file.kind} {file.path} is not in this restore point ({why}): {_LOSS}")


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
