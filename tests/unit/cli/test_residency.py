"""Where data may lie: the signed config says it, and every host refuses the repository elsewhere."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.conftest import Run
from tests.unit.engine.kit import SECRET, RamKit
from vmbackup.engine.replica.copy import Copier, CopyOptions
from vmbackup.errors import RepositoryError, UsageError
from vmbackup.progress import Silent
from vmbackup.repository import Repository, residency
from vmbackup.repository.trust import Trust
from vmbackup.storage_backends import StoreUnavailable, open_store
from vmbackup.storage_backends.local import LocalStore
from vmbackup.storage_backends.s3_settings import S3Settings


@pytest.mark.parametrize(
    ("place", "host"),
    [
        ("file:///srv/vmbackup", "file"),
        ("file:///srv/host at home", "file"),
        ("s3://bucket/prefix at https://FSN1.your-objectstorage.com", "fsn1.your-objectstorage.com"),
        ("s3://bucket at http://10.0.0.1:7480", "10.0.0.1"),
        ("s3://bucket at https://[::1]:7480", "::1"),
    ],
)
def test_location(place: str, host: str) -> None:
    assert residency.location(place) == host


@pytest.mark.parametrize(
    ("allowed", "fits"),
    [
        (None, True),
        (("fsn1.example.com",), True),
        (("*.example.com",), True),
        (("nbg1.example.com", "fsn1.*"), True),
        (("nbg1.example.com",), False),
        (("example.com",), False),
        (("file",), False),
        ((), False),
    ],
)
def test_check(allowed: tuple[str, ...] | None, fits: bool) -> None:
    place = "s3://bucket at https://fsn1.example.com"
    if fits:
        residency.check(allowed, place)
    else:
        with pytest.raises(RepositoryError, match=r"may not lie at fsn1\.example\.com"):
            residency.check(allowed, place)


@pytest.mark.parametrize("text", ["", "*", "*.*", "https://host", "a b", "host/path", "h" * 300])
def test_what_is_no_host(text: str) -> None:
    with pytest.raises(UsageError, match="is no host"):
        residency.patterns([text])


def test_init_and_residency(run: Run, tmp_path: Path) -> None:
    wrong = run("init", "--allow-endpoint", "*.example.com")
    assert (wrong.code, "allow file too" in wrong.err) == (2, True), wrong.err
    assert not list((tmp_path / "repository").iterdir())
    assert not (tmp_path / "secrets" / "passphrase").exists()
    assert run("init", "--allow-endpoint", "*.example.com", "--allow-endpoint", "FILE").code == 0
    told = {"allowed_endpoints": ["*.example.com", "file"], "endpoint": "file"}
    assert run("--json", "residency").json == told
    checks = [c for c in run("--json", "doctor").json["checks"] if c["name"] == "residency"]
    assert [c["message"] for c in checks] == ["data lies at file, and may lie at *.example.com, file only"]
    assert run("residency", "--allow-endpoint", "elsewhere.org").code == 2
    assert run("--json", "residency").json == told
    assert run("residency", "--anywhere").out == "It may lie anywhere; it lies at file.\n"
    assert run("residency", "--anywhere", "--allow-endpoint", "file").code == 2


def moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same objects, as a store of another host."""
    monkeypatch.setattr(LocalStore, "place", "s3://bucket at https://s3.elsewhere.org")


def test_elsewhere_it_is_refused(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever brought it there: nothing is read from it, and nothing written."""
    assert run("init", "--allow-endpoint", "file").code == 0
    before = sorted(tmp_path.rglob("*"))
    moved(monkeypatch)
    for words in (("list",), ("verify",), ("prune",), ("residency", "--anywhere")):
        result = run(*words)
        assert (result.code, "may not lie at s3.elsewhere.org" in result.err) == (1, True), result.err
    checks = run("--json", "doctor").json["checks"]
    assert [c["status"] for c in checks if c["name"] == "repository"] == ["fail"]
    assert sorted(p for p in tmp_path.rglob("*") if "repository" in str(p)) == [
        p for p in before if "repository" in str(p)
    ]


def test_a_running_process_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restriction that comes while a backup runs holds before its commit."""
    kit = RamKit(tmp_path, {"vda": 1 << 16})
    moved(monkeypatch)
    host: Any = kit.host
    operator = Repository.open(kit.store, SECRET, Trust(None))
    host.on_seal = lambda: operator._put_config(
        {**operator.config.document, "version": 2, "allowed_endpoints": ["file"]}
    )
    with pytest.raises(RepositoryError, match=r"may not lie at s3\.elsewhere\.org"):
        kit.backup()


def test_nothing_is_copied_to_where_it_may_not_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = (RamKit(tmp_path / name, {"vda": 1 << 16}) for name in ("a", "b"))
    residency.restrict(source.repository, ["file"])
    Copier(source.repository, target.repository, CopyOptions(tmp_path), Silent())
    monkeypatch.setattr(type(target.repository.store), "place", "s3://bucket at https://s3.elsewhere.org")
    with pytest.raises(RepositoryError, match=r"may not lie at s3\.elsewhere\.org"):
        Copier(source.repository, target.repository, CopyOptions(tmp_path), Silent())


class _Answers(http.server.BaseHTTPRequestHandler):
    """Counts requests and answers each in the same way."""

    protocol_version = "HTTP/1.1"
    status, headers_given, body = 200, (), b""
    asked: list[str]

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.asked.append(f"{self.command} {self.path}")
        self.send_response(self.status)
        for name, value in self.headers_given:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


@contextmanager
def server(**fields: Any) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    verbs = {f"do_{verb}": _Answers.answer for verb in ("GET", "PUT", "HEAD", "POST", "DELETE")}
    handler = type("_Handler", (_Answers,), {**fields, **verbs, "asked": asked})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{made.server_port}", asked
        made.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "code"), [(301, "PermanentRedirect"), (302, "Found"), (307, "TemporaryRedirect"), (308, "Redirect")]
)
def test_a_server_that_sends_elsewhere_is_not_followed(status: int, code: str) -> None:
    """Not by its Location, nor by the endpoint or the region that it names: no byte leaves for another host."""
    with server() as (elsewhere, reached):
        body = f"<Error><Code>{code}</Code><Endpoint>{elsewhere[7:]}</Endpoint><Region>xx-1</Region></Error>".encode()
        given = (("Location", f"{elsewhere}/bucket/data/x"), ("x-amz-bucket-region", "xx-1"))
        with server(status=status, headers_given=given, body=body) as (endpoint, asked):
            store = open_store("s3://bucket", S3Settings(endpoint, "us-east-1", "path", "key", "secret", None))
            for work in (
                lambda: store.put("data/x", b"1"),
                lambda: store.get("data/x"),
                lambda: store.stat("data/x"),
                lambda: list(store.list("")),
                lambda: store.delete("data/x"),
            ):
                with pytest.raises(StoreUnavailable):
                    work()
            store.close()
        assert asked
        assert reached == []
