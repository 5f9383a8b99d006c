"""`init` makes a repository that opens with what it says, `key` adds to it; nothing is ever overwritten."""

import stat
from pathlib import Path
from typing import Any

import pytest

from vmbackup.repository import Repository

from .conftest import Run


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_init_makes_everything_and_says_where(run: Run, tmp_path: Path) -> None:
    result = run("init")
    assert result.code == 0, result.err
    passphrase, recovery = tmp_path / "secrets" / "passphrase", tmp_path / "secrets" / "recovery-key-local"
    assert f"{passphrase} (new, random)" in result.out
    assert str(recovery) in result.out
    assert "Keep the recovery key off this machine." in result.out
    assert (_mode(passphrase), _mode(recovery), _mode(passphrase.parent)) == (0o600, 0o600, 0o700)
    assert "AAAA" not in result.out
    key = recovery.read_text().splitlines()[-1]
    assert key not in result.out
    assert len(key) == 69


def test_init_as_json(run: Run, tmp_path: Path) -> None:
    made = run("--json", "init", "--chunk-size", "128KiB", "--recovery-file", str(tmp_path / "key")).json["repository"]
    assert made == {
        "name": "local",
        "id": made["id"],
        "url": f"file://{tmp_path}/repository",
        "chunk_size": 131072,
        "passphrase_file": str(tmp_path / "secrets" / "passphrase"),
        "passphrase_made": True,
        "recovery_key_file": str(tmp_path / "key"),
        "replica_of": None,
        "object_lock_days": None,
        "store": {"put_if_absent": True, "ranges": True, "lists": True},
    }


def test_init_keeps_a_passphrase_that_is_there(run: Run, tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "passphrase").write_text("my own\n")
    assert "(new, random)" not in run("init").out
    assert (tmp_path / "secrets" / "passphrase").read_text() == "my own\n"
    assert run("list").code == 0


def test_a_second_init_is_refused_and_changes_nothing(run: Run, repository: Path, tmp_path: Path) -> None:
    before = sorted((p, p.read_bytes()) for p in tmp_path.rglob("*") if p.is_file())
    result = run("init")
    assert result.code == 1
    assert f"{repository} already holds a repository" in result.err
    assert sorted((p, p.read_bytes()) for p in tmp_path.rglob("*") if p.is_file()) == before


def test_a_second_init_makes_no_passphrase(run: Run, repository: Path, tmp_path: Path) -> None:
    (tmp_path / "secrets" / "passphrase").unlink()
    assert run("init").code == 1
    assert not (tmp_path / "secrets" / "passphrase").exists()


def test_init_refuses_a_place_that_holds_anything(run: Run, tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "photo.jpg").write_text("x")
    result = run("init")
    assert (result.code, "already holds other things" in result.err) == (1, True)
    assert not (tmp_path / "secrets").exists()


def test_a_failed_init_takes_its_files_away(run: Run, tmp_path: Path) -> None:
    result = run("init", "--chunk-size", "3KiB")
    assert result.code == 2, result.err
    assert not list((tmp_path / "secrets").iterdir())


def test_init_never_overwrites_a_recovery_key(run: Run, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("precious")
    result = run("init", "--recovery-file", str(tmp_path / "key"))
    assert result.code == 2
    assert (tmp_path / "key").read_text() == "precious"
    assert not (tmp_path / "secrets" / "passphrase").exists()
    assert run("list").code in (5, 6)


def test_without_a_terminal_nobody_is_asked(bare: Run, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(f'[repositories.a]\nurl = "{tmp_path}/r"\n[daemon]\nstate_dir = "{tmp_path}/s"\n')
    result = bare("--config", str(config), "init")
    assert result.code == 6
    assert result.err == (
        'error: no passphrase for repository "a" is known\n'
        "       add passphrase_file to [repositories.a], or run this on a terminal\n"
    )


def test_a_repository_that_is_not_there_is_5(run: Run, tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "passphrase").write_text("x")
    for _ in range(2):
        result = run("list")
        assert (result.code, len(result.err.splitlines())) == (5, 2)
        assert "vmbackup init" in result.err
        (tmp_path / "repository").mkdir(exist_ok=True)


def test_a_wrong_passphrase_is_6(run: Run, repository: Path, tmp_path: Path) -> None:
    (tmp_path / "secrets" / "passphrase").write_text("wrong")
    result = run("--json", "list")
    assert (result.code, result.json["error"]["kind"]) == (6, "access")


def test_the_recovery_key_opens_as_passphrase_file(run: Run, repository: Path, tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    (secrets / "recovery-key-local").rename(secrets / "passphrase")
    assert run("list").code == 0


def test_key_add_and_list(run: Run, repository: Path, tmp_path: Path) -> None:
    (tmp_path / "new").write_text("another\n")
    result = run("key", "add", "--passphrase-file", str(tmp_path / "new"), "--label", "ops")
    assert result.code == 0, result.err
    keys = run("--json", "key", "list").json["keys"]
    assert [key["kind"] for key in keys].count("passphrase") == 2
    assert "ops" in {key["label"] for key in keys}
    assert "ops" in run("key", "list").out
    (tmp_path / "secrets" / "passphrase").write_text("another")
    assert run("list").code == 0


def test_key_add_needs_a_terminal_or_a_file(run: Run, repository: Path) -> None:
    result = run("key", "add")
    assert (result.code, "--passphrase-file" in result.err) == (2, True)


def test_export_recovery(run: Run, repository: Path, tmp_path: Path) -> None:
    file = tmp_path / "recovery"
    result = run("key", "export-recovery", "--output", str(file))
    assert result.code == 0, result.err
    assert _mode(file) == 0o600
    assert file.read_text().splitlines()[-1] not in result.out
    again = run("key", "export-recovery", "--output", str(file))
    assert (again.code, "exists already" in again.err) == (2, True)
    file.rename(tmp_path / "secrets" / "passphrase")
    assert run("list").code == 0


def test_a_damaged_key_slot_is_4_and_the_rest_is_shown(run: Run, repository: Path) -> None:
    # the recovery slot: the passphrase's is needed to get in
    slot = next(k["id"] for k in run("--json", "key", "list").json["keys"] if k["kind"] == "recovery")
    path = repository / "keys" / slot
    path.write_bytes(path.read_bytes()[:-1])
    result = run("--json", "key", "list")
    assert result.code == 4
    assert [d["object"] for d in result.json["damaged"]] == [f"keys/{slot}"]
    assert run("key", "list").code == 4


@pytest.mark.parametrize("name", ["local", "other"])
def test_recovery_keys_of_several_repositories_do_not_collide(bare: Run, tmp_path: Path, name: str) -> None:
    config = tmp_path / "c.toml"
    config.write_text(
        "".join(
            f'[repositories.{n}]\nurl = "{tmp_path}/{n}"\npassphrase_file = "{tmp_path}/p"\n'
            for n in ("local", "other")
        )
        + f'[daemon]\nstate_dir = "{tmp_path}/s"\n[host]\ncache_dir = "{tmp_path}/c"\n'
    )
    result = bare("--config", str(config), "--repository", name, "init")
    assert result.code == 0, result.err
    assert (tmp_path / f"recovery-key-{name}").exists()


def test_no_repository_without_its_recovery_key_on_disk(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the config makes it a repository, the key's file is whole already: whatever happens then."""
    seen: list[str] = []
    original = Repository._put_config

    def put(self: Repository, document: dict[str, Any]) -> None:
        seen.append((tmp_path / "secrets" / "recovery-key-local").read_text())
        original(self, document)

    monkeypatch.setattr(Repository, "_put_config", put)
    assert run("init").code == 0
    assert seen == [(tmp_path / "secrets" / "recovery-key-local").read_text()]
    assert seen[0].strip().splitlines()[-1].count("-") == 13
