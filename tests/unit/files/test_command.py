"""`vmbackup files` on a terminal and for programs; the guest's file systems are made up."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.cli import CONFIG
from tests.unit.engine.kit import RamKit
from vmbackup.cli import main
from vmbackup.engine.files import appliance, files
from vmbackup.engine.files.files import Entry
from vmbackup.engine.files.guest_layout import FileSystem
from vmbackup.engine.files.landed_tree import Landed, LeftOut
from vmbackup.errors import NotFoundError


class MadeUp:
    """What the command asks of GuestFiles."""

    started_seconds = 1.5

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.left_out: list[LeftOut] = []

    def filesystems(self) -> list[FileSystem]:
        return [
            FileSystem("/dev/sda1", "/dev/vda1", "ext4", "ro\x1b[31mot", "aa", 1 << 30, mount_point="/"),
            FileSystem("/dev/sda2", "/dev/vda2", "crypto_LUKS", "", "bb", 2 << 30),
        ]

    def listing(self, path: str) -> list[Entry]:
        if path == "/nothing":
            raise NotFoundError("there is no /nothing in the guest", "look above it")
        return [
            Entry("passwd", 0o100644, 0, 42, 1234, 1_700_000_000, ""),
            Entry("sh\n\x1b]0;x\x07\udcff", 0o120777, 0, 0, 4, -5, "/etc/\x1b[2Jx"),
        ]

    def fetch(self, paths: tuple[str, ...], output: Path, _progress: object) -> Landed:
        self.asked.append((paths, output))
        return Landed(files=3, directories=1, links=0, bytes=2048, left_out=self.left_out)


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> MadeUp:
    found = MadeUp()

    @contextlib.contextmanager
    def opened(_repository: object, point: Any, targets: tuple[str, ...], *_: Any, **__: Any) -> Iterator[MadeUp]:
        found.asked.append((point.domain, targets))
        yield found

    monkeypatch.setattr(files, "guest_files", opened)
    return found


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    kit = RamKit(tmp_path, {"vda": 8192, "vdb": 4096})
    kit.backup()
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "passphrase").write_text("a passphrase for tests\n")
    (tmp_path / "secrets" / "passphrase").chmod(0o600)
    (tmp_path / "config.toml").write_text(CONFIG.format(folder=tmp_path))
    monkeypatch.setenv("VMBACKUP_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("TZ", "UTC")

    def typed(*arguments: str) -> tuple[int, str, str]:
        code = main(["files", "guest@latest", "vda", *arguments])
        told = capsys.readouterr()
        return code, told.out, told.err

    return typed


def test_file_systems(run: Run, made_up: MadeUp) -> None:
    """A table without what steers a terminal; what cannot be looked into is told."""
    code, out, _ = run("ls", "--with", "vdb")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines == [
        ["DEVICE", "TYPE", "LABEL", "SIZE", "MOUNTED", "AT"],
        ["/dev/vda1", "ext4", "ro?[31mot", "1.00", "GiB", "/"],
        ["/dev/vda2", "crypto_LUKS", "-", "2.00", "GiB", "encrypted"],
    ]
    assert made_up.asked == [("guest", ("vda", "vdb"))]


def test_file_systems_for_programs(run: Run, made_up: MadeUp) -> None:
    code, out, _ = run("ls", "--json")
    told = json.loads(out)
    assert (code, told["disk"], told["start_seconds"]) == (0, "vda", 1.5)
    assert [(fs["device"], fs["mount_point"], fs["size"]) for fs in told["filesystems"]] == [
        ("/dev/vda1", "/", 1 << 30), ("/dev/vda2", None, 2 << 30),
    ]  # fmt: skip


def test_a_folder(run: Run, made_up: MadeUp) -> None:
    """Names of the guest steer no terminal, and stay on their line."""
    code, out, _ = run("ls", "/etc")
    lines = out.splitlines()
    assert (code, len(lines)) == (0, 3)
    assert lines[1].split() == ["-rw-r--r--", "0", "42", "1234", "2023-11-14", "22:13:20+00:00", "passwd"]
    assert lines[2].startswith("lrwxrwxrwx")
    assert not set("\x1b\x07") & set(out)


def test_a_folder_for_programs(run: Run, made_up: MadeUp) -> None:
    """Names are exact: bytes that are no UTF-8 stand as surrogates."""
    _, out, _ = run("ls", "/etc", "--json")
    first, second = json.loads(out)["entries"]
    assert first == {
        "name": "passwd", "type": "file", "mode": "0644", "uid": 0, "gid": 42, "size": 1234,
        "modified": "2023-11-14T22:13:20+00:00",
    }  # fmt: skip
    assert os.fsencode(second["name"]) == b"sh\n\x1b]0;x\x07\xff"
    assert (second["type"], second["target"], second["modified"]) == ("link", "/etc/\x1b[2Jx", None)


def test_get(run: Run, made_up: MadeUp, tmp_path: Path) -> None:
    code, out, err = run("get", "/etc", "/root/x", "--output", str(tmp_path / "out"))
    assert (code, err) == (0, "")
    assert out == f"3 files, 2.00 KiB, in {tmp_path / 'out'}\n"
    assert made_up.asked[-1] == (("/etc", "/root/x"), tmp_path / "out")


def test_what_is_left_out_is_told(run: Run, made_up: MadeUp, tmp_path: Path) -> None:
    """Ten by name, all with -v and for programs; the exit code is that of warnings."""
    made_up.left_out = [LeftOut(f"dev/{n}\n\x1b", "a device or pipe") for n in range(12)]
    code, _, err = run("get", "/", "--output", str(tmp_path))
    assert (code, len(err.splitlines())) == (3, 11)
    assert "left out: dev/0?? (a device or pipe)" in err
    assert "2 more, which -v names" in err
    code, out, _ = run("get", "/", "--output", str(tmp_path), "--json")
    assert (code, len(json.loads(out)["left_out"])) == (3, 12)


@pytest.mark.parametrize(
    "arguments",
    [("get", "/etc"), ("get", "--output", "x"), ("ls", "--output", "x"), ("ls", "/a", "/b"), ("rm", "/a"), (),
     ("ls", "etc"), ("get", "/etc", "../x", "--output", "x")],
)
def test_wrong_usage(run: Run, made_up: MadeUp, arguments: tuple[str, ...]) -> None:
    assert run(*arguments)[0] == 2
    assert made_up.asked == []


@pytest.mark.parametrize("path", ["/etc", "/srv/etc/", "/dev/vda2:/etc"])
def test_what_is_there_is_refused_before_a_virtual_machine_starts(
    run: Run, made_up: MadeUp, tmp_path: Path, path: str
) -> None:
    (tmp_path / "out" / "etc").mkdir(parents=True)
    code, _, err = run("get", path, "--output", str(tmp_path / "out"))
    assert (code, f"{tmp_path}/out/etc is already there" in err) == (1, True)
    assert made_up.asked == []


def test_without_a_kernel(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence, for the twelve lines of the program that makes the appliance."""
    (tmp_path / "supermin").write_text(
        "#!/bin/sh\necho 'supermin: failed to find a suitable kernel (host_cpu=x86_64).\n\nI looked.' >&2\nexit 1\n"
    )
    (tmp_path / "supermin").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(appliance, "_PARTS", (str(tmp_path),))
    monkeypatch.delenv("LIBGUESTFS_PATH", raising=False)
    code, _, err = run("ls")
    assert code == 1
    assert err == (
        "error: libguestfs needs a kernel in /boot, and there is none that it can use\n"
        "       apt install linux-image-amd64\n"
    )


def test_not_found(run: Run, made_up: MadeUp) -> None:
    code, _, err = run("ls", "/nothing")
    assert (code, "there is no /nothing" in err) == (5, True)


def test_no_such_disk(run: Run) -> None:
    code, _, err = run("ls", "--with", "vdz")
    assert (code, "it has vda, vdb" in err) == (5, True)


def test_without_libguestfs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package that lacks is named."""
    monkeypatch.setattr(appliance, "_PARTS", ("/nowhere/*",))
    monkeypatch.delenv("LIBGUESTFS_PATH", raising=False)
    code, _, err = run("ls")
    assert code == 1
    assert "libguestfs is not installed" in err
    assert "apt install libguestfs-tools" in err
