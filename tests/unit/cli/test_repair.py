"""`repair`: what was damaged, how it was healed, what remains and what to do; exit code 4 while damage remains."""

from pathlib import Path

import pytest

from .conftest import Run


@pytest.fixture
def copy(repository: Path) -> Path:
    """A signed object that stands twice."""
    return repository / "config.copy" / "1"


def test_nothing_to_do(run: Run, repository: Path) -> None:
    result = run("repair")
    assert (result.code, result.out) == (0, "0 restore points looked at: no damage\n")


def test_it_tells_what_was_healed(run: Run, copy: Path) -> None:
    data = copy.read_bytes()
    copy.unlink()
    result = run("repair", "--dry-run")
    assert result.code == 4
    assert result.out.splitlines() == [
        "damaged  config.copy/1: is missing",
        "could be healed  config.copy/1: put back from its copy",
        "damaged: 1 object; suffering: 0 restore points",
    ]
    assert not copy.exists()
    result = run("repair")
    assert result.code == 0
    assert result.out.splitlines()[1:] == [
        "healed  config.copy/1: put back from its copy",
        "all that restore points need is whole again",
    ]
    assert copy.read_bytes() == data
    assert run("verify", "--last").code == 0


def test_what_remains_and_what_to_do(run: Run, repository: Path, copy: Path) -> None:
    copy.unlink()
    slot = sorted((repository / "keys").iterdir())
    for path in slot:
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert run("repair").code == 4, "nothing opens it"
    for path in slot:
        path.unlink()


def test_json(run: Run, copy: Path) -> None:
    copy.write_bytes(b"")
    document = run("repair", "--json").json
    assert document["healed"] == []
    assert document["damaged"] == document["remaining"]
    assert document["remaining"][0]["object"] == "config.copy/1"
    assert document["dry_run"] is False
    result = run("repair")
    assert result.code == 4
    assert result.out.splitlines()[-1] == "Other objects: put them back with --from a replica that has them."
    assert run("doctor", "--json").json["checks"]
    assert run("verify", "--last").code == 4


def test_from_another_repository(run: Run, config_file: Path, repository: Path, tmp_path: Path) -> None:
    """A repository of other keys cannot help, nor the repository itself."""
    text = config_file.read_text()
    other = text.split("[repositories.local]")[1].split("[host]")[0].replace("/repository", "/other")
    config_file.write_text(text.replace("[host]", f"[repositories.other]{other}[host]"))
    assert run("--repository", "other", "init").code == 0
    result = run("repair", "--from", "other")
    assert result.code == 2
    assert "shares no keys with local" in result.err
    assert run("repair", "--from", "local").code == 2
    assert run("repair", "--from", "none").code == 5
