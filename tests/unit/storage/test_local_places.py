"""Addresses and folders: missing, forbidden, in the way, or swapped."""

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.storage.conftest import every_file, needs_root
from vmbackup.storage_backends import (
    BadStoreUrl,
    ObjectExists,
    ObjectMissing,
    Store,
    StoreMissing,
    StoreUnavailable,
    occupants,
    open_store,
)

_NOBODY = 65534


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

    def test_folders_may_be_links_to_another_disk(self, root: Path, store: Store, tmp_path: Path) -> None:
        """What can be got through a link is listed through it."""
        (tmp_path / "cold disk").mkdir()
        (root / "data").symlink_to(tmp_path / "cold disk")
        store.put("data/x/1", b"1")
        assert (tmp_path / "cold disk" / "x" / "1").exists()
        assert [entry.key for entry in store.list("")] == ["data/x/1"]

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
