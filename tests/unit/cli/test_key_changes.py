"""`vmbackup key remove`, `change` and `rotate` at the command line."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Run
from vmbackup.storage_backends import DeleteRefused
from vmbackup.storage_backends.local import LocalStore


@pytest.fixture
def second(run: Run, repository: Path, tmp_path: Path) -> str:
    """The id of another passphrase, "another"."""
    (tmp_path / "new").write_text("another\n")
    return run("--json", "key", "add", "--passphrase-file", str(tmp_path / "new"), "--label", "ops").json["key"]["id"]


def opens(run: Run, tmp_path: Path, passphrase: str) -> bool:
    path = tmp_path / "secrets" / "passphrase"
    before = path.read_text()
    path.write_text(passphrase)
    try:
        return run("list").code == 0
    finally:
        path.write_text(before)


def test_remove(run: Run, second: str, tmp_path: Path) -> None:
    assert opens(run, tmp_path, "another")
    done = run("key", "remove", second[:8])
    assert (done.code, f"Removed key {second}" in done.out) == (0, True), done.err
    assert not opens(run, tmp_path, "another")
    assert second not in run("key", "list").out
    assert run("key", "remove", second).code == 5


def test_remove_refuses_the_one_in_use_and_recovery_keys(run: Run, second: str) -> None:
    keys = run("--json", "key", "list").json["keys"]
    own = next(k["id"] for k in keys if k["kind"] == "passphrase" and k["id"] != second)
    spare = next(k["id"] for k in keys if k["kind"] == "recovery")
    for slot, word in ((own, "key change"), (spare, "--allow-recovery")):
        refused = run("key", "remove", slot)
        assert (refused.code, word in refused.err) == (2, True), refused.err
    assert len(run("--json", "key", "list").json["keys"]) == 3
    assert run("key", "remove", spare, "--allow-recovery").code == 0


def test_a_removed_key_that_stays_is_shown_as_such(
    run: Run, second: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: LocalStore, key: str) -> None:
        raise DeleteRefused(key, None)

    monkeypatch.setattr(LocalStore, "delete", refuse)
    done = run("key", "remove", second)
    assert (done.code, "did not delete" in done.err) == (0, True)
    assert {k["id"] for k in run("--json", "key", "list").json["keys"] if k["removed"]} == {second}
    assert "removed" in next(line for line in run("key", "list").out.splitlines() if line.startswith(second))
    assert not opens(run, tmp_path, "another")


def test_change_rewrites_the_passphrase_file(run: Run, repository: Path, tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "passphrase"
    old = path.read_text()
    (tmp_path / "new").write_text("another\n")
    done = run("key", "change", "--passphrase-file", str(tmp_path / "new"))
    assert (done.code, f"{path} holds it now" in done.out) == (0, True), done.err
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("another\n", 0o600)
    assert run("list").code == 0
    assert not opens(run, tmp_path, old)
    assert sorted(p.name for p in path.parent.iterdir()) == ["passphrase", "recovery-key-local"]
    assert run("verify").code == 0


def test_change_leaves_a_link_a_link(run: Run, repository: Path, tmp_path: Path) -> None:
    path, target = tmp_path / "secrets" / "passphrase", tmp_path / "elsewhere"
    path.rename(target)
    path.symlink_to(target)
    (tmp_path / "new").write_text("another\n")
    assert run("key", "change", "--passphrase-file", str(tmp_path / "new")).code == 0
    assert (path.is_symlink(), target.read_text()) == (True, "another\n")
    assert run("list").code == 0


def test_rotate(run: Run, second: str, tmp_path: Path) -> None:
    file, recovery = tmp_path / "recovery", tmp_path / "secrets" / "recovery-key-local"
    refused = run("key", "rotate", "--recovery-file", str(file))
    assert (refused.code, f"{second} (passphrase, ops)" in refused.err, file.exists()) == (2, True, False)
    done = run("key", "rotate", "--recovery-file", str(file), "--drop-others")
    assert done.code == 0, done.err
    assert "Epoch 2" in done.out
    assert f"{second} (passphrase, ops)" in done.out
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert run("verify").code == 0
    assert not opens(run, tmp_path, "another")
    assert not opens(run, tmp_path, recovery.read_text())
    assert opens(run, tmp_path, file.read_text())
    assert run("key", "rotate", "--recovery-file", str(file)).code == 2
    again = run("--json", "key", "rotate", "--recovery-file", str(tmp_path / "third")).json
    assert (again["epoch"], [s["kind"] for s in again["removed"]]) == (3, ["recovery"])
