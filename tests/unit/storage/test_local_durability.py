"""What a put has on disk when it returns, how it is written, and what it leaves when it cannot."""

import errno
import fcntl
import os
import resource
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.storage.conftest import every_file, needs_root
from tests.unit.storage.contract import aligned
from vmbackup.storage_backends import (
    Store,
    StoreFull,
    StoreUnavailable,
    open_store,
)

MIB = 1 << 20


class TestDurability:
    """What must be on disk before a put returns is synced, in this order."""

    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
        """Every fsync and link, by the path it concerned."""
        seen: list[tuple[str, str]] = []
        fsync, link = os.fsync, os.link

        def recorded_fsync(fd: int) -> None:
            seen.append(("fsync", os.readlink(f"/proc/self/fd/{fd}")))
            fsync(fd)

        def recorded_link(source: str, target: str, **options: bool) -> None:
            seen.append(("link", target))
            link(source, target, **options)

        monkeypatch.setattr(os, "fsync", recorded_fsync)
        monkeypatch.setattr(os, "link", recorded_link)
        return seen

    def test_a_put_syncs_new_folders_then_the_file_then_its_name(
        self, tmp_path: Path, calls: list[tuple[str, str]]
    ) -> None:
        root = tmp_path / "x" / "store"
        store = open_store(str(root), create=True)
        assert calls == [("fsync", str(tmp_path)), ("fsync", str(tmp_path / "x"))]
        calls.clear()
        store.put("a/b/c", b"1")
        [temporary] = [path for what, path in calls if "/.tmp-" in path]
        folder = f"{root}/a/b"
        assert calls == [
            ("fsync", str(root)),
            ("fsync", f"{root}/a"),
            ("fsync", temporary),
            ("link", f"{folder}/c"),
            ("fsync", folder),
        ]
        assert os.path.dirname(temporary) == folder
        calls.clear()
        store.put("a/b/d", b"1")
        assert [what for what, _ in calls] == ["fsync", "link", "fsync"]

    def test_names_made_by_another_process_are_synced_too(
        self, root: Path, store: Store, calls: list[tuple[str, str]]
    ) -> None:
        """The other one may die between its link and its fsync; our success must not rest on it."""
        open_store(str(root)).put("a/b", b"1")
        calls.clear()
        store.put("a/b", b"1")
        synced = [path for what, path in calls if what == "fsync"]
        assert synced[0] == str(root)
        assert synced[-2:] == [f"{root}/a/b", f"{root}/a"]

    def test_a_delete_is_synced(self, root: Path, store: Store, calls: list[tuple[str, str]]) -> None:
        store.put("a/b", b"1")
        calls.clear()
        store.delete("a/b")
        assert calls == [("fsync", f"{root}/a")]

    def test_a_failed_fsync_is_no_success(self, root: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        """The kernel tells of a lost page once only: the file is given up, never synced again."""

        def failing(_fd: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "fsync", failing)
        with pytest.raises(StoreUnavailable):
            store.put("a", b"1")
        monkeypatch.undo()
        assert every_file(root) == []
        store.put("a", b"1")


class TestDirectWrites:
    """Big page-aligned buffers go past the page cache where the file system lets them."""

    @pytest.fixture
    def direct(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Bytes of each write past the page cache."""
        written: list[int] = []
        write = os.write

        def recorded(fd: int, data: memoryview) -> int:
            count = write(fd, data)
            if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
                written.append(count)
            return count

        monkeypatch.setattr(os, "write", recorded)
        return written

    def test_whole_blocks_are_direct_and_the_tail_is_not(self, root: Path, store: Store, direct: list[int]) -> None:
        data = secrets.token_bytes(2 * MIB + 4096 + 7)
        store.put("a", aligned(data))
        assert store.get("a") == data
        if not direct and not offers_direct(root):
            pytest.skip("the file system of /tmp has no O_DIRECT: set TMPDIR to a folder on disk")
        assert sum(direct) == 2 * MIB + 4096

    def test_small_or_unaligned_buffers_are_not(self, store: Store, direct: list[int]) -> None:
        with memoryview(aligned(bytes(4 * MIB))) as view:
            store.put("a", view[:65536])
            store.put("b", view[512 : 512 + 2 * MIB])
            store.put("c", bytes(2 * MIB))
            store.put("d", view.toreadonly()[: 2 * MIB])
        assert direct == []

    @pytest.mark.parametrize("refused_after", [-1, 0, MIB])
    def test_where_it_is_refused_the_write_is_buffered(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, refused_after: int
    ) -> None:
        """EINVAL when it is set, at the first write, or at a later one: the object is whole all the same."""
        set_flags, write, done = fcntl.fcntl, os.write, 0

        def refusing_flags(fd: int, command: int, argument: int = 0) -> int:
            if refused_after < 0 and command == fcntl.F_SETFL and argument & os.O_DIRECT:
                raise OSError(errno.EINVAL, "Invalid argument")
            return set_flags(fd, command, argument)

        def refusing_write(fd: int, data: memoryview) -> int:
            nonlocal done
            if set_flags(fd, fcntl.F_GETFL) & os.O_DIRECT:
                if done >= refused_after:
                    raise OSError(errno.EINVAL, "Invalid argument")
                data = data[:MIB]
            count = write(fd, data)
            done += count
            return count

        monkeypatch.setattr(fcntl, "fcntl", refusing_flags)
        monkeypatch.setattr(os, "write", refusing_write)
        data = secrets.token_bytes(3 * MIB)
        store.put("a", aligned(data))
        assert store.get("a") == data


class TestSpace:
    """No space left is StoreFull, leaves nothing behind, and passes when there is space again."""

    @needs_root
    @pytest.mark.parametrize("kind", [bytes, aligned])
    def test_a_full_file_system(self, tmpfs: Path, kind: Callable[[bytes], bytes]) -> None:
        store = open_store(str(tmpfs / "store"), create=True)
        stored: list[str] = []
        with pytest.raises(StoreFull) as caught:
            for n in range(100):
                store.put(f"a/{n:02}", kind(bytes(MIB // 2)))
                stored.append(f"store/a/{n:02}")
        assert caught.value.hint
        assert 4 <= len(stored) < 100
        assert sorted(every_file(tmpfs)) == stored
        store.delete("a/00")
        store.put("a/again", kind(bytes(MIB // 2)))

    def test_a_limit_on_the_size_of_files(self, root: Path, store: Store) -> None:
        program = (
            "import sys; from vmbackup.storage_backends import *\n"
            "try: open_store(sys.argv[1]).put('a', bytes(3000000))\n"
            "except StoreFull as error: print(error.kind)"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(root)],
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB)),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        assert done.stdout == "store_full\n"
        assert every_file(root) == []


class TestTemporaryFiles:
    """They are never listed, and swept when their writer must be dead."""

    def test_one_left_by_a_killed_writer(self, root: Path, store: Store) -> None:
        program = (
            "import os, sys; from vmbackup.storage_backends import open_store\n"
            "def hang(fd): print('hangs', flush=True); sys.stdin.read()\n"
            "store = open_store(sys.argv[1]); store.put('a/one', b'1')\n"
            "os.fsync = hang; store.put('a/two', b'2')"
        )
        writer = subprocess.Popen(
            [sys.executable, "-c", program, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"hangs\n"
        writer.kill()
        writer.communicate()
        [left] = [path for path in (root / "a").iterdir() if path.name.startswith(".tmp-")]
        assert [entry.key for entry in store.list("")] == ["a/one"]
        assert left.exists()
        os.utime(left, (0, time.time() - 86000))
        assert [entry.key for entry in store.list("a/t")] == []
        assert left.exists()
        os.utime(left, (0, time.time() - 87000))
        assert [entry.key for entry in store.list("a/t")] == []
        assert not left.exists()
        store.put("a/two", b"2")


def offers_direct(folder: Path) -> bool:
    try:
        fd = os.open(folder / ".tmp-direct", os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
    except OSError:
        return False
    os.close(fd)
    return True


def test_packs_leave_space_for_what_frees_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system that is nearly full large objects are refused; small ones, as forget and prune put, are not."""
    store = open_store(str(tmp_path))
    full = os.statvfs_result((4096, 4096, 10_000, 1000, 1000, 0, 0, 0, 0, 255))  # 4 MiB are free
    monkeypatch.setattr(os, "statvfs", lambda _path: full)
    with pytest.raises(StoreFull, match="8 MiB stay free for prune"):
        store.put("data/default/pack", bytes(2 << 20))
    store.put("trash/default/point", b"forgotten")
    assert [entry.key for entry in store.list("")] == ["trash/default/point"]
