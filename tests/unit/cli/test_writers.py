"""`vmbackup key add-writer` and `revoke-writer`, and what a host with a writer's key may do at the command line."""

from __future__ import annotations

import json
import random
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.conftest import CONFIG, Run
from tests.unit.engine.kit import RamKit
from vmbackup.cli import access
from vmbackup.repository import Repository
from vmbackup.repository.trust import Trust
from vmbackup.repository.writers import WriterKeys
from vmbackup.storage_backends import StoreUnavailable

KIB = 1 << 10


@pytest.fixture
def kit(tmp_path: Path) -> RamKit:
    """A repository that the configuration opens, with one restore point."""
    made = RamKit(tmp_path, {"vda": 64 * KIB})
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "passphrase").write_text("a passphrase for tests")
    (tmp_path / "secrets" / "passphrase").chmod(0o600)
    made.disk().write(0, random.Random(1).randbytes(16 * KIB))
    made.backup()
    return made


@pytest.fixture
def host(bare: Run, tmp_path: Path) -> Run:
    """`vmbackup` on a host that has a writer's key in `writer-key`, and a state of its own."""
    text = CONFIG.format(folder=tmp_path).replace(
        f'passphrase_file = "{tmp_path}/secrets/passphrase"', f'writer_key_file = "{tmp_path}/writer-key"'
    )
    path = tmp_path / "host.toml"
    path.write_text(text.replace("/state", "/host-state"))
    path.chmod(0o600)
    return lambda *args: bare("--config", str(path), *args)


def add(run: Run, kit: RamKit, name: str, *more: str) -> Path:
    file = kit.root / "writer-key"
    file.unlink(missing_ok=True)
    result = run("key", "add-writer", "--name", name, "--output", str(file), *more)
    assert result.code == 0, result.err
    return file


def back_up(kit: RamKit, file: Path, seed: int) -> str:
    kit.repository = Repository.open(kit.store, WriterKeys.from_text(file.read_text(), "file"), Trust(None))
    kit.disk().write(0, random.Random(seed).randbytes(16 * KIB))
    return kit.backup().id


def test_a_host_with_a_key_file(run: Run, host: Run, kit: RamKit) -> None:
    """It lists, shows and verifies; it restores nothing, forgets nothing, and makes and takes no keys."""
    file = add(run, kit, "host1")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    point = back_up(kit, file, 2)
    assert host("--json", "list").json["points"][0]["id"] == point
    assert host("show", point).code == 0
    checked = host("--json", "verify", "--read-data")
    assert (checked.code, checked.json["read"], checked.json["damaged"]) == (0, "checksums", [])
    out = kit.root / "out"
    result = host("restore", point, "--output", str(out))
    assert result.code == 6
    assert result.err == (
        "error: this host's key may not read stored data\n"
        "       run this where the repository opens with the passphrase or the recovery key\n"
    )
    assert not out.exists()
    before = {entry.key for entry in kit.store.list("")}
    (kit.root / "new").write_text("new")
    for words in (
        ("forget", point, "--allow-last"),
        ("forget", "--keep-last", "1"),
        ("prune",),
        ("key", "add", "--passphrase-file", str(kit.root / "new")),
        ("key", "export-recovery", "--output", str(kit.root / "recovery")),
        ("key", "add-writer", "--name", "host2", "--output", str(kit.root / "two")),
        ("key", "revoke-writer", "host1"),
    ):
        refused = host("--json", *words)
        assert (refused.code, refused.json["error"]["kind"]) == (6, "access"), words
    assert {entry.key for entry in kit.store.list("")} == before
    assert not (kit.root / "two").exists()
    assert not (kit.root / "recovery").exists()
    assert host("key", "list").code == 0


def test_a_pruner_prunes_and_backs_nothing_up(
    run: Run, host: Run, kit: RamKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(run, kit, "pruner", "--role", "prune")
    for seed in (3, 4):
        kit.disk().write(0, random.Random(seed).randbytes(16 * KIB))
        kit.backup()
    assert host("forget", "--keep-last", "1").code == 0
    assert host("--json", "prune").json["pruned"]["objects"] > 0

    @contextmanager
    def opened(*_: object) -> Iterator[Any]:
        yield object()  # no guest is looked at

    monkeypatch.setattr(access, "opened_host", opened)
    result = host("backup", "guest")
    assert (result.code, "may not make restore points" in result.err) == (6, True)
    assert "--role backup" in result.err
    assert host("restore", "guest", "--output", str(kit.root / "out")).code == 6


def test_add_writer_writes_over_nothing_and_takes_no_name_twice(run: Run, kit: RamKit) -> None:
    add(run, kit, "host1")
    other = kit.root / "other"
    again = run("key", "add-writer", "--name", "host1", "--output", str(other))
    assert (again.code, "there is a writer 'host1' already" in again.err) == (2, True)
    other.write_text("precious")
    taken = run("key", "add-writer", "--name", "host2", "--output", str(other))
    assert (taken.code, other.read_text()) == (2, "precious")
    assert len(list(kit.store.list("writers/"))) == 2
    assert run("key", "add-writer", "--name", "a b", "--output", str(kit.root / "x")).code == 2
    assert run("key", "add-writer", "--name", "h", "--group", "A", "--output", str(kit.root / "x")).code == 2
    assert not (kit.root / "x").exists()


def test_the_file_is_there_before_the_enrolment(run: Run, kit: RamKit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happens then: it stays where the key may count, and goes where it does not."""
    file = kit.root / "writer-key"
    original = type(kit.store).put
    stored = True

    def put(self: Any, key: str, data: bytes) -> None:
        if not key.startswith("writers/"):
            return original(self, key, data)
        assert json.loads(file.read_text())["writer"]["name"] == "host1"
        if stored:
            original(self, key, data)
        raise StoreUnavailable("the line was cut")

    monkeypatch.setattr(type(kit.store), "put", put)
    words = ("key", "add-writer", "--name", "host1", "--output", str(file))
    assert run(*words).code == 1
    assert file.exists()
    kit.store.delete(f"writers/{json.loads(file.read_text())['writer']['id']}")
    file.unlink()
    stored = False
    assert run(*words).code == 1
    assert not file.exists()


def test_key_list_and_revoke_writer(run: Run, host: Run, kit: RamKit) -> None:
    add(run, kit, "host2", "--group", "other", "--role", "prune")
    file = add(run, kit, "host1")
    back_up(kit, file, 2)
    writers = run("--json", "key", "list").json["writers"]
    assert [(w["name"], w["role"], w["group"], w["revoked"]) for w in writers] == [
        ("host1", "backup", "default", False),
        ("host2", "prune", "other", False),
    ]
    done = run("key", "revoke-writer", "host1")
    assert (done.code, "1 commit of it stand" in done.out) == (0, True), done.err
    shown = [line.split() for line in run("key", "list").out.splitlines()]
    assert ["host1", "backup", "default", writers[0]["id"], "revoked"] in shown
    assert ["host2", "prune", "other", writers[1]["id"]] in shown
    assert run("--json", "list").json["quarantined"] == []
    assert run("key", "revoke-writer", "nobody").code == 5
    checks = host("--json", "doctor").json["checks"]
    assert [(c["status"], "was revoked" in c["message"]) for c in checks if c["name"] == "key"] == [("fail", True)]


def test_what_a_stolen_pruner_forgot_comes_back(run: Run, host: Run, kit: RamKit) -> None:
    point = kit.points()[0].id
    add(run, kit, "pruner", "--role", "prune")
    assert host("forget", "guest", "--allow-last").code == 0
    assert run("--json", "list").json["points"] == []
    assert run("key", "revoke-writer", "pruner", "--undo-since", "yesterday").code == 2
    done = run("key", "revoke-writer", "pruner", "--undo-since", "2026-01-01")
    assert (done.code, "0 stay forgotten and 1 come back" in done.out) == (0, True), done.err
    assert [p["id"] for p in run("--json", "list").json["points"]] == [point]
    assert run("verify", "--read-data").code == 0


def test_what_is_in_quarantine_is_told_and_can_be_forgotten(
    run: Run, kit: RamKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = add(run, kit, "host1")
    assert run("key", "revoke-writer", "host1").code == 0
    with monkeypatch.context() as patch:
        patch.setattr(Repository, "check_enrolled", lambda _: None)
        doubtful = back_up(kit, file, 2)
    listed = run("--json", "list")
    assert (listed.code, len(listed.json["points"])) == (3, 1)
    assert [(q["id"], q["domain"], q["writer"]) for q in listed.json["quarantined"]] == [(doubtful, "guest", "host1")]
    for command in (run("list"), run("verify")):
        assert command.code == 3
        assert f"in quarantine: {doubtful}, a restore point of 'guest', signed by 'host1'" in command.err
        assert f"vmbackup forget {doubtful}" in command.err
    assert [q["id"] for q in run("--json", "verify").json["quarantined"]] == [doubtful]
    assert run("restore", doubtful, "--output", str(kit.root / "out")).code == 6
    checks = run("--json", "doctor").json["checks"]
    assert ("warn", True) in [(c["status"], "quarantine" in c["message"]) for c in checks if c["name"] == "repository"]
    assert run("--json", "forget", doubtful).json["forgotten"] == [doubtful.rpartition("-")[2]]
    assert (run("list").code, run("verify").code) == (0, 0)


def test_doctor_tells_the_key(run: Run, host: Run, kit: RamKit) -> None:
    add(run, kit, "host1", "--group", "other")
    (check,) = [c for c in host("--json", "doctor").json["checks"] if c["name"] == "key"]
    assert (check["status"], "writer key 'host1', role backup, group other" in check["message"]) == ("ok", True)
    (check,) = [c for c in run("--json", "doctor").json["checks"] if c["name"] == "key"]
    assert "a passphrase" in check["message"]


@pytest.mark.parametrize(
    ("spoil", "code", "message"),
    [
        (lambda p: p.chmod(0o644), 2, "has mode 0644: others may read it"),
        (lambda p: p.unlink(), 6, "does not exist"),
        (lambda p: p.write_text("a passphrase"), 6, "is no writer key, or is damaged"),
        (lambda p: p.write_bytes(b"\xff"), 2, "is no writer key"),
        (lambda p: p.write_text(p.read_text().replace("default", "another")), 6, "its checksum differs"),
        (lambda p: p.write_text("x" * (1 << 17)), 2, "too large"),
    ],
)
def test_a_key_file_that_is_wrong(run: Run, host: Run, kit: RamKit, spoil: Any, code: int, message: str) -> None:
    file = add(run, kit, "host1")
    spoil(file)
    result = host("list")
    assert (result.code, message in result.err, len(result.err.splitlines())) == (code, True, 2), result.err


def test_init_with_a_writer_key_is_refused(host: Run, tmp_path: Path) -> None:
    result = host("init")
    assert (result.code, "can make no repository" in result.err) == (2, True)
    assert not (tmp_path / "repository").exists()
