"""The local store: the contract, and what only a folder can do wrong."""

import ctypes
import errno
import os
import resource
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.storage.contract import StoreContract, aligned
from vmbackup.storage_backends import (
    BadStoreUrl,
    ObjectExists,
    ObjectMissing,
    Store,
    StoreFull,
    StoreMissing,
    StoreUnavailable,
    files,
    occupants,
    open_store,
)

MIB = 1 << 20
_NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a tmpfs: run as root")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "new parent" / "store"


@pytest.fixture
def store(root: Path) -> Store:
    return open_store(f"file://{root}", create=True)


@pytest.fixture
def overwrite(root: Path) -> Callable[[str, bytes], None]:
    def write(key: str, data: bytes) -> None:
        path = root / key
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)

    return write


def every_file(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


class TestLocalStore(StoreContract):
    """The contract on a file system with hard links."""


class TestLocalStoreWithoutLinks(StoreContract):
    """The contract where link(2) is refused, as on vfat."""

    @pytest.fixture(autouse=True)
    def no_links(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        patch = (
            "import errno, os\n"
            "def link(*args, **options): raise PermissionError(errno.EPERM, 'no links')\n"
            "os.link = link\n"
        )
        exec(patch, {})
        (tmp_path / "sitecustomize.py").write_text(patch)  # for the contract's child processes
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    @pytest.fixture(autouse=True)
    def links_again(self) -> Iterator[None]:
        link = os.link
        yield
        os.link = link


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "mount"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


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

    def test_a_failed_fsync_is_no_success(
        self, root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
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
        """Bytes of each direct write."""
        written: list[int] = []
        write_direct = files._write_direct

        def recorded(fd: int, data: memoryview) -> int:
            written.append(write_direct(fd, data))
            return written[-1]

        monkeypatch.setattr(files, "_write_direct", recorded)
        return written

    def test_whole_blocks_are_direct_and_the_tail_is_not(self, store: Store, direct: list[int]) -> None:
        data = secrets.token_bytes(2 * MIB + 4096 + 7)
        store.put("a", aligned(data))
        assert store.get("a") == data
        if direct == [0]:
            pytest.skip("O_DIRECT is refused by the file system of /tmp: set TMPDIR to a folder on disk")
        assert direct == [2 * MIB + 4096]

    def test_small_or_unaligned_buffers_are_not(self, store: Store, direct: list[int]) -> None:
        with memoryview(aligned(bytes(4 * MIB))) as view:
            store.put("a", view[:65536])
            store.put("b", view[512 : 512 + 2 * MIB])
            store.put("c", bytes(2 * MIB))
            store.put("d", view.toreadonly()[: 2 * MIB])
        assert direct == [0, 0, 0, 0]

    @pytest.mark.parametrize("refused_after", [-1, 0, MIB])
    def test_where_it_is_refused_the_write_is_buffered(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, refused_after: int
    ) -> None:
        """EINVAL when it is set, at the first write, or at a later one: the object is whole all the same."""
        import fcntl

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
        store.put("a/first", kind(bytes(2 * MIB)))
        with pytest.raises(StoreFull) as caught:
            store.put("a/second", kind(bytes(3 * MIB)))
        assert caught.value.hint
        assert every_file(tmpfs) == ["store/a/first"]
        store.delete("a/first")
        store.put("a/second", kind(bytes(3 * MIB)))

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


class TestPlaces:
    """Folders that are missing, forbidden, in the way, or swapped."""

    def test_a_missing_folder(self, root: Path) -> None:
        with pytest.raises(StoreMissing, match="there is no folder"):
            open_store(str(root))
        assert not root.exists()

    def test_a_file_is_no_folder(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(StoreMissing):
            open_store(str(tmp_path / "file"))
        with pytest.raises(StoreUnavailable):
            open_store(str(tmp_path / "file" / "store"), create=True)

    def test_create_takes_a_folder_that_is_there(self, root: Path, store: Store) -> None:
        store.put("a", b"1")
        assert open_store(str(root), create=True).get("a") == b"1"

    def test_files_and_folders_are_for_the_owner_only(self, root: Path, store: Store) -> None:
        store.put("a/b", b"1")
        modes = [path.stat().st_mode & 0o777 for path in (root, root / "a", root / "a/b")]
        assert modes == [0o700, 0o700, 0o600]

    def test_a_forbidden_folder(self, nobodys: Path) -> None:
        """Neither a put nor a list passes over what it may not do."""
        store = open_store(str(nobodys))
        store.put("a/b", b"1")
        (nobodys / "a").chmod(0o000)
        nobodys.chmod(0o500)
        for use in (
            lambda: store.put("c", b"1"),
            lambda: store.put("a/c", b"1"),
            lambda: store.get("a/b"),
            lambda: store.stat("a/b"),
            lambda: list(store.list("")),
            lambda: store.delete("a/b"),
            store.probe,
        ):
            with pytest.raises(StoreUnavailable, match="Permission denied") as caught:
                use()
            assert caught.value.hint
        nobodys.chmod(0o700)
        (nobodys / "a").chmod(0o700)
        assert every_file(nobodys) == ["a/b"]

    def test_a_folder_that_is_gone_is_not_a_missing_object(self, root: Path, store: Store) -> None:
        """What was on an unmounted disk is not reported as lost, and nothing is written below it."""
        store.put("a/b", b"1")
        root.rename(root.with_name("elsewhere"))
        for use in all_uses(store):
            with pytest.raises(StoreMissing):
                use()
        assert not root.exists()

    @needs_root
    def test_nothing_is_written_below_an_unmounted_disk(self, tmpfs: Path) -> None:
        store = open_store(str(tmpfs))
        store.put("a/b", b"1")
        subprocess.run(["umount", tmpfs], check=True)
        try:
            for use in all_uses(store):
                with pytest.raises(StoreMissing, match="no longer"):
                    use()
            assert list(tmpfs.iterdir()) == []
        finally:
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmpfs], check=True)

    def test_a_file_in_the_way_of_a_folder(self, store: Store) -> None:
        store.put("a", b"1")
        with pytest.raises(StoreUnavailable, match="Not a directory"):
            store.put("a/b", b"1")

    def test_a_folder_in_the_way_of_an_object(self, store: Store) -> None:
        store.put("a/b", b"1")
        with pytest.raises(ObjectExists):
            store.put("a", b"1")

    def test_what_is_no_regular_file_is_no_object(self, root: Path, store: Store) -> None:
        """A link or a pipe is seen by a list, and never followed, waited for or overwritten."""
        (root / "link").symlink_to("/etc/hostname")
        os.mkfifo(root / "pipe")
        assert list(occupants(store)) == ["link", "pipe"]
        for key in ("link", "pipe"):
            for use in (store.get, store.stat):
                with pytest.raises(ObjectMissing):
                    use(key)
            with pytest.raises(ObjectExists):
                store.put(key, b"1")

    def test_names_that_are_no_text_are_listed(self, root: Path, store: Store) -> None:
        (root / os.fsdecode(b"\xff")).touch()
        store.put("a", b"1")
        assert [os.fsencode(entry.key) for entry in store.list("")] == [b"a", b"\xff"]

    def test_the_lost_and_found_of_a_new_file_system_does_not_count(self, root: Path, store: Store) -> None:
        (root / "lost+found").mkdir(mode=0)
        assert list(occupants(store)) == []

    def test_folders_removed_meanwhile_are_made_again(self, root: Path, store: Store) -> None:
        store.put("a/b/c", b"1")
        store.delete("a/b/c")
        (root / "a/b").rmdir()
        (root / "a").rmdir()
        store.put("a/b/c", b"2")
        assert store.get("a/b/c") == b"2"


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


class TestAddresses:
    """What open_store takes."""

    def test_a_path_and_a_url_are_the_same(self, tmp_path: Path) -> None:
        folder = tmp_path / "with space%"
        folder.mkdir()
        store = open_store(str(folder))
        assert store.url == f"file://{tmp_path}/with%20space%25"
        store.put("a", b"1")
        for url in (store.url, f"file://localhost{store.url[7:]}", f"{folder}/", f"file://{folder}"):
            assert open_store(url).get("a") == b"1"

    @pytest.mark.parametrize(
        "url",
        ["", "relative/path", "file://host/path", "file:relative", "file:///", "/", "s3://bucket/x", "http://x/y",
         "file:///a?b", "file:///a#b", "file:///a%00b", "/a\0b", "http://[", "C:\\x"],
    )  # fmt: skip
    def test_other_addresses_are_refused(self, url: str) -> None:
        with pytest.raises(BadStoreUrl) as caught:
            open_store(url, create=True)
        assert caught.value.hint


def all_uses(store: Store) -> list[Callable[[], object]]:
    return [
        lambda: store.get("a/b"),
        lambda: store.read_into("a/b", 0, memoryview(bytearray(1))),
        lambda: store.stat("a/b"),
        lambda: list(store.list("a/")),
        lambda: list(store.list("")),
        lambda: store.put("a/c", b"1"),
        lambda: store.put("d", b"1"),
        lambda: store.delete("a/b"),
        store.probe,
    ]


@pytest.fixture
def nobodys() -> Iterator[Path]:
    """A store of an unprivileged user, as whom this thread then uses files where it is root."""
    folder = Path(tempfile.mkdtemp())
    if os.geteuid() != 0:
        yield folder
        return
    os.chown(folder, _NOBODY, _NOBODY)
    libc = ctypes.CDLL(None)
    libc.setfsuid(_NOBODY)
    yield folder
    libc.setfsuid(0)
    shutil.rmtree(folder)
