"""Runs `vmbackup` inside this process, with a configuration in a folder of its own."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vmbackup.cli import main

CONFIG = """\
[libvirt]
uri = "test:///default"
scratch_dir = "{folder}/scratch"

[repositories.local]
url = "file://{folder}/repository"
passphrase_file = "{folder}/secrets/passphrase"

[host]
cache_dir = "{folder}/cache"

[daemon]
state_dir = "{folder}/state"

[jobs.nightly]
domains = ["*"]
exclude = ["scratch-*"]
quiesce = "never"
"""


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)


Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _no_colours_and_no_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VMBACKUP_CONFIG", raising=False)
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    monkeypatch.setenv("TZ", "UTC")


@pytest.fixture
def bare(capsys: pytest.CaptureFixture[str]) -> Run:
    """`vmbackup ARGS...` as it is typed."""

    def run(*args: str) -> Result:
        code = main(args)
        said = capsys.readouterr()
        return Result(code, said.out, said.err)

    return run


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG.format(folder=tmp_path))
    path.chmod(0o600)
    return path


@pytest.fixture
def run(bare: Run, config_file: Path) -> Run:
    """`vmbackup --config FILE ARGS...`, everything in the test's own folder."""
    return lambda *args: bare("--config", str(config_file), *args)


@pytest.fixture
def repository(run: Run, tmp_path: Path) -> Path:
    """The folder of a repository that `init` made."""
    assert run("init").code == 0
    return tmp_path / "repository"
