"""What a guest calls its files, and what they are, harms nothing here."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pytest

from vmbackup.engine.files.landed_tree import Landed, Piece
from vmbackup.engine.files.landing import Landing
from vmbackup.errors import GuestFilesError, TargetError


def member(name: str, data: bytes | None = None, **fields: object) -> tuple[tarfile.TarInfo, bytes | None]:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode = tarfile.REGTYPE, len(data or b""), 0o644
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def folder(name: str) -> tuple[tarfile.TarInfo, None]:
    return member(name, type=tarfile.DIRTYPE, mode=0o755)[0], None


def link(name: str, target: str) -> tuple[tarfile.TarInfo, None]:
    return member(name, type=tarfile.SYMTYPE, linkname=target)[0], None


def archive(*members: tuple[tarfile.TarInfo, bytes | None]) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data or b""))
    out.seek(0)
    return out


def land(output: Path, source: io.BytesIO, name: str = "etc") -> Landed:
    with Landing(output, lambda _: None) as landing:
        landing.refuse_existing(name)
        landing.put_tree(name, source)
        landing.keep(name)
    return landing.landed


def test_a_folder_as_it_is(tmp_path: Path) -> None:
    """Contents, modes, times, links within, holes; a folder that we make is private."""
    data = bytes(3 << 20) + b"end"
    source = archive(
        folder("."), folder("./sub"), member("./sub/file", b"text", mode=0o640, mtime=1_000_000),
        member("./sparse", data), link("./near", "sub/file"),
        member("./same", type=tarfile.LNKTYPE, linkname="./sub/file"),
    )  # fmt: skip
    done = land(tmp_path / "out", source)
    etc = tmp_path / "out" / "etc"
    assert (done.files, done.directories, done.links, done.left_out) == (3, 2, 1, [])
    assert (etc / "sub/file").read_bytes() == (etc / "near").read_bytes() == b"text"
    found = (etc / "sub/file").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_mtime, found.st_nlink) == (0o640, 1_000_000, 2)
    assert (etc / "sparse").read_bytes() == data
    assert (etc / "sparse").stat().st_blocks * 512 < len(data)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700


def test_links_that_lead_out_are_left_out(tmp_path: Path) -> None:
    """Straight, or by way of others; those within stay, whether or not they lead anywhere."""
    source = archive(
        folder("."), folder("./a"), folder("./a/b"),
        link("./absolute", "/etc/shadow"), link("./above", "../../secret"),
        link("./a/b/up", "../.."), link("./chain", "a/b/up/../secret"), link("./dangling", "a/nothing"),
    )  # fmt: skip
    done = land(tmp_path / "out", source)
    assert sorted(each.path for each in done.left_out) == ["above", "absolute", "chain"]
    assert "/etc/shadow" in next(each.reason for each in done.left_out if each.path == "absolute")
    assert sorted(os.listdir(tmp_path / "out" / "etc")) == ["a", "dangling"]
    assert os.readlink(tmp_path / "out" / "etc" / "a" / "b" / "up") == "../.."


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", ".."])
def test_names_that_lead_out_end_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(GuestFilesError):
        land(tmp_path / "out", archive(folder("."), folder("./a"), member(name, b"x")))
    assert list(tmp_path.rglob("evil*")) == []
    assert list((tmp_path / "out").iterdir()) == []


def test_absolute_names_stay_within(tmp_path: Path) -> None:
    land(tmp_path / "out", archive(folder("."), member("/file", b"x")))
    assert (tmp_path / "out" / "etc" / "file").read_bytes() == b"x"


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    """A machine that lies about its file system sends a link, then a file below it."""
    (tmp_path / "victim").mkdir()
    source = archive(folder("."), link("./x", str(tmp_path / "victim")), member("./x/file", b"x"))
    with pytest.raises(GuestFilesError):
        land(tmp_path / "out", source)
    assert list((tmp_path / "victim").iterdir()) == []


def test_a_further_name_of_something_outside(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    for target in (str(tmp_path / "secret"), "./missing"):
        done = land(tmp_path / "out", archive(folder("."), member("./h", type=tarfile.LNKTYPE, linkname=target)))
        assert [each.path for each in done.left_out] == ["h"]
        (tmp_path / "out" / "etc").rmdir()


def test_devices_and_rights_are_not_taken_over(tmp_path: Path) -> None:
    source = archive(
        folder("."), member("./dev", type=tarfile.BLKTYPE, devmajor=8), member("./fifo", type=tarfile.FIFOTYPE),
        member("./su", b"x", mode=0o6777), member("./none", b"x", mode=0),
    )  # fmt: skip
    done = land(tmp_path / "out", source)
    assert sorted(each.path for each in done.left_out) == ["dev", "fifo"]
    modes = {n: stat.S_IMODE((tmp_path / "out/etc" / n).stat().st_mode) for n in ("su", "none")}
    assert modes == {"su": 0o755, "none": 0o600}
    assert (tmp_path / "out/etc/su").stat().st_uid == os.geteuid()


def test_any_bytes_are_a_name(tmp_path: Path) -> None:
    name = b"line\nbreak \x1b[31m \xff".decode("utf-8", "surrogateescape")
    land(tmp_path / "out", archive(folder("."), member(f"./{name}", b"x")))
    assert os.listdir(os.fsencode(tmp_path / "out" / "etc")) == [b"line\nbreak \x1b[31m \xff"]


def test_a_path_that_is_too_long_costs_nothing_beside_it(tmp_path: Path) -> None:
    """A guest nests folders deeper than one path can say: these are told, and all else is taken."""
    folders = ["/".join(["d" * 100] * depth) for depth in range(1, 45)]
    deepest = folders[-1]
    source = archive(
        folder("."), *(folder(f"./{name}") for name in folders), member(f"./{deepest}/file", b"lost"),
        link(f"./{deepest}/link", "file"), member("./file", b"text"),
    )  # fmt: skip
    done = land(tmp_path / "out", source)
    assert (tmp_path / "out" / "etc" / "file").read_bytes() == b"text"
    assert (tmp_path / "out" / "etc" / folders[30]).is_dir()
    assert {each.reason for each in done.left_out} == {"its path is too long here"}
    assert [each.path[-5:] for each in done.left_out[-2:]] == ["/file", "/link"]
    assert done.directories + len(done.left_out) == len(folders) + 3


@pytest.mark.parametrize("name", ["n" * 255, "ä" * 127])
def test_a_name_may_be_as_long_as_names_are(tmp_path: Path, name: str) -> None:
    with Landing(tmp_path, lambda _: None) as landing:
        landing.refuse_existing(name)
        landing.put_file(name, io.BytesIO(b"text"), Told(4, 0o644, 0))
        landing.keep(name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("length", [600, 2500])
def test_what_is_cut_is_not_there(tmp_path: Path, length: int) -> None:
    whole = archive(folder("."), member("./file", bytes(range(256)) * 20))
    with pytest.raises(GuestFilesError):
        land(tmp_path / "out", io.BytesIO(whole.getvalue()[:length]))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_header_without_end_is_refused(tmp_path: Path) -> None:
    """A name of 1 GiB is not read."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    source = io.BytesIO(info.tobuf(tarfile.GNU_FORMAT) + b"a" * (16 << 20))
    with pytest.raises(GuestFilesError):
        land(tmp_path / "out", source)
    assert source.tell() < 1 << 20


@pytest.mark.parametrize("there", ["etc", "etc.partial"])
def test_nothing_is_replaced(tmp_path: Path, there: str) -> None:
    (tmp_path / there).mkdir()
    (tmp_path / there / "mine").write_text("mine")
    with pytest.raises(TargetError, match="already there"):
        land(tmp_path, archive(folder("."), member("./mine", b"yours")))
    assert (tmp_path / there / "mine").read_text() == "mine"


@dataclass(frozen=True)
class Told:
    size: int
    mode: int = 0o100644
    mtime: int = 1_000_000


def test_a_file_of_its_own(tmp_path: Path) -> None:
    with Landing(tmp_path, lambda _: None) as landing:
        landing.put_file("hosts", io.BytesIO(b"text"), Told(4))
        landing.keep("hosts")
    assert (tmp_path / "hosts").read_bytes() == b"text"
    assert (tmp_path / "hosts").stat().st_mtime == 1_000_000
    assert os.listdir(tmp_path) == ["hosts"]


def test_a_file_that_is_cut_is_not_there(tmp_path: Path) -> None:
    with Landing(tmp_path, lambda _: None) as landing, pytest.raises(GuestFilesError):
        landing.put_file("hosts", io.BytesIO(b"tex"), Told(4))
    assert os.listdir(tmp_path) == []


@dataclass(frozen=True)
class Entry:
    """What a guest tells of a file."""

    type: str = "file"
    size: int = 0
    mode: int = 0o644
    mtime: int = 0
    target: str = ""


def nothing() -> AbstractContextManager[BinaryIO]:
    return nullcontext(io.BytesIO())


def land_pieces(output: Path, *pieces: tuple[str, Entry]) -> Landed:
    with Landing(output, lambda _: None) as landing:
        landing.put_pieces("etc", Entry("directory"), [Piece(name, told, nothing) for name, told in pieces])
        landing.keep("etc")
    return landing.landed


def test_a_damaged_folder_names_files_twice(tmp_path: Path) -> None:
    """The first stays; what is below a file that is a folder too has no place; nothing is written through a link."""
    link, folder = Entry("link", target="/tmp"), Entry("directory")
    done = land_pieces(
        tmp_path, ("a", Entry()), ("a", folder), ("a/below", Entry()), ("a", Entry()), ("b", link), ("b", folder),
        ("b/c", Entry()), ("gone/d", Entry()),
    )  # fmt: skip
    assert [each.path for each in done.left_out] == ["a", "a/below", "a", "gone/d", "b"]
    assert sorted(os.listdir(tmp_path / "etc")) == ["a", "b"]
    assert os.listdir(tmp_path / "etc" / "b") == ["c"]


@pytest.mark.parametrize("name", ["../out", "a/../../out", "..", "/../out"])
def test_a_damaged_folder_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    """The kernel refuses such names; who has taken it over may not."""
    with pytest.raises(GuestFilesError, match="leads out"):
        land_pieces(tmp_path / "to", ("a", Entry("directory")), (name, Entry()))
    assert os.listdir(tmp_path) == ["to"]
    assert os.listdir(tmp_path / "to") == []
