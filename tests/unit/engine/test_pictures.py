"""Pictures of screens: from what QEMU gives to what a browser shows, one a guest."""

from __future__ import annotations

import struct
import zlib
from datetime import UTC, datetime
from pathlib import Path

import pytest

from vmbackup.engine.drill import pictures
from vmbackup.engine.drill.picture import to_png

WEB, DB = "f707ff3b-b71b-4e4e-8f78-acacb883c7e3", "00000000-0000-0000-0000-000000000001"


def at(hour: int) -> datetime:
    return datetime(2026, 11, 28, hour, tzinfo=UTC)


def pixels(png: bytes) -> tuple[int, int, bytes]:
    """Width, height and the colours, as a decoder finds them; checksums compared."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    found, place = {}, 8
    while place < len(png):
        (length,) = struct.unpack_from(">I", png, place)
        kind, data = png[place + 4 : place + 8], png[place + 8 : place + 8 + length]
        assert struct.unpack_from(">I", png, place + 8 + length)[0] == zlib.crc32(kind + data)
        found[kind], place = data, place + 12 + length
    width, height, *rest = struct.unpack(">IIBBBBB", found[b"IHDR"])
    assert rest == [8, 2, 0, 0, 0]
    rows = zlib.decompress(found[b"IDAT"])
    lines = [rows[n * (1 + width * 3) :][: 1 + width * 3] for n in range(height)]
    assert all(line[0] == 0 for line in lines)
    return width, height, b"".join(line[1:] for line in lines)


@pytest.mark.parametrize("head", [b"P6\n3 2\n255\n", b"P6 3 2 255 ", b"P6\n# QEMU\n3\n# x\n2 255\n"])
def test_a_pixmap(head: bytes) -> None:
    colours = bytes(range(18))
    assert pixels(to_png(head + colours)) == (3, 2, colours)
    assert pixels(to_png(head + colours + b"more")) == (3, 2, colours)


def test_png_stays_as_it_is() -> None:
    made = to_png(b"P6 1 1 255 abc")
    assert to_png(made) is made


@pytest.mark.parametrize(
    "data",
    [b"", b"P6", b"P5 1 1 255 a", b"P6 1 1 65535 abcdef", b"P6 2 2 255 abc", b"P6 0 1 255 ", b"P6 99999 1 255 ",
     b"<svg/>"],
)  # fmt: skip
def test_what_is_no_picture(data: bytes) -> None:
    with pytest.raises(ValueError, match="picture"):
        to_png(data)


def test_one_is_kept_of_each_guest_and_repository(tmp_path: Path) -> None:
    """The newest takes the place of the one before, and is known by another name."""
    for hour in (1, 2, 3):
        pictures.keep(tmp_path, "local", WEB, at(hour), b"web%d" % hour)
    pictures.keep(tmp_path, "off-site.1", WEB, at(1), b"far")
    path = pictures.keep(tmp_path, "local", DB, at(1), b"db")
    found = pictures.newest(tmp_path)
    assert {whose: pictures.read(tmp_path, name) for whose, name in found.items()} == {
        (WEB, "local"): b"web3", (WEB, "off-site.1"): b"far", (DB, "local"): b"db",
    }  # fmt: skip
    assert len(list(path.parent.iterdir())) == 3
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_the_same_second_again(tmp_path: Path) -> None:
    for data in (b"one", b"two"):
        path = pictures.keep(tmp_path, "local", WEB, at(1), data)
    assert path.read_bytes() == b"two"


def test_there_may_be_none(tmp_path: Path) -> None:
    assert pictures.newest(tmp_path) == {}
    assert pictures.read(tmp_path, f"{WEB}-1-local.png") is None


@pytest.mark.parametrize(
    "name", ["../secret.png", "secret.png", f"{WEB}-1-..%2f.png", f"../pictures/{WEB}-1-local.png", ""]
)
def test_only_pictures_are_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    pictures.keep(tmp_path, "local", WEB, at(1), b"web")
    (tmp_path / "pictures/secret.png").write_bytes(b"secret")
    assert pictures.read(tmp_path, name) is None
