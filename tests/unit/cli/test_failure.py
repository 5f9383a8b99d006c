"""Every kind of error: one sentence, one hint, its exit code, no traceback; as JSON where that was asked for."""

import errno
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from vmbackup import errors
from vmbackup.cli import access
from vmbackup.nbd.errors import NbdError
from vmbackup.storage_backends import ObjectMissing, ObjectTruncated, StoreFull, StoreMissing, StoreUnavailable

from .conftest import Run

Raise = Callable[[BaseException], None]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Raise:
    """Lets every command end in an error of one's choice."""

    def install(error: BaseException) -> None:
        def load_config(_state: object) -> None:
            raise error

        monkeypatch.setattr(access, "load_config", load_config)

    return install


KINDS = [
    (errors.VmbackupError("it failed", "do this"), 1, "failed", "do this"),
    (errors.UsageError("it failed", "do this"), 2, "usage", "do this"),
    (errors.ConfigError("it failed", "do this"), 2, "config", "do this"),
    (errors.DamageError("it failed"), 4, "damaged", "verify --read-data"),
    (errors.NotFoundError("it failed", "do this"), 5, "not_found", "do this"),
    (errors.AccessError("it failed", "do this"), 6, "access", "do this"),
    (errors.RepositoryError("it failed", "do this"), 1, "repository", "do this"),
    (errors.HypervisorError("it failed", "do this"), 1, "hypervisor", "do this"),
    (errors.JobConflictError("it failed", "do this"), 1, "job_conflict", "do this"),
    (errors.PointInTimeLostError("it failed", "do this"), 1, "point_in_time_lost", "do this"),
    (errors.ScratchFullError("it failed", "do this"), 1, "scratch_full", "do this"),
    (errors.QuiesceError("it failed", "do this"), 1, "quiesce", "do this"),
    (errors.TargetError("it failed", "do this"), 1, "target", "do this"),
    (StoreMissing("it failed", "do this"), 5, "store_missing", "do this"),
    (StoreFull("it failed", "do this"), 1, "store_full", "do this"),
    (StoreUnavailable("it failed"), 1, "store_unavailable", "vmbackup doctor"),
    (NbdError("it failed"), 1, "nbd", "vmbackup doctor"),
    (OSError(errno.ENOSPC, "it failed", "/x"), 1, "system", "vmbackup doctor"),
]


@pytest.mark.parametrize(("error", "code", "kind", "hint"), KINDS, ids=[type(e[0]).__name__ for e in KINDS])
def test_each_error_is_told_without_a_traceback(
    failing: Raise, bare: Run, error: Exception, code: int, kind: str, hint: str
) -> None:
    failing(error)
    result = bare("list")
    assert result.code == code
    assert result.out == ""
    lines = result.err.splitlines()
    assert len(lines) == 2, result.err
    assert lines[0].startswith("error: ")
    assert "it failed" in lines[0]
    assert hint in lines[1]

    result = bare("--json", "list")
    assert result.code == code
    assert result.err == ""
    told = result.json["error"]
    assert (told["kind"], told["exit_code"]) == (kind, code)
    assert "it failed" in told["message"]
    assert hint in told["hint"]


@pytest.mark.parametrize("error", [ObjectMissing("points/x"), ObjectTruncated("points/x", 1, 2)])
def test_a_missing_or_cut_object_is_damage(failing: Raise, bare: Run, error: Exception) -> None:
    failing(error)
    result = bare("--json", "list")
    assert (result.code, result.json["error"]["kind"]) == (4, "damaged")


def test_an_unexpected_error_is_said_to_be_a_bug(failing: Raise, bare: Run) -> None:
    failing(KeyError("x"))
    result = bare("list")
    assert result.code == 1
    assert result.err == (
        "error: KeyError: 'x'\n"
        "       this is a bug in vmbackup: run the command again with --debug, and report what it prints\n"
    )
    assert bare("--json", "list").json["error"]["kind"] == "internal"


def test_debug_shows_the_traceback(failing: Raise, bare: Run) -> None:
    failing(errors.VmbackupError("it failed"))
    assert "Traceback" in bare("--debug", "list").err
    assert "Traceback" in bare("list", "--debug").err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_an_interrupt_is_130(failing: Raise, bare: Run, error: BaseException) -> None:
    failing(error)
    result = bare("list")
    assert (result.code, result.err.strip().splitlines()[0]) == (130, "error: interrupted")
    assert bare("--json", "list").json["error"]["exit_code"] == 130


def test_control_characters_never_reach_the_terminal(failing: Raise, bare: Run) -> None:
    failing(errors.NotFoundError("no \x1b[31mdomain\x07", "look \x9b1m"))
    assert bare("list").err == "error: no ?[31mdomain?\n       look ?1m\n"


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        (["bakcup"], 'there is no command "bakcup"', 'did you mean "backup"?'),
        (["xyzzy"], 'there is no command "xyzzy"', "'vmbackup --help' lists the commands"),
        (["key", "ad"], 'there is no command "key ad"', 'did you mean "add"?'),
        (["list", "--fast"], "--fast", "'vmbackup list --help' tells what is possible"),
        (["--fast", "list"], "--fast", "'vmbackup --help' tells what is possible"),
        (["show"], "missing argument 'POINT'", "'vmbackup show --help' tells what is possible"),
        (["backup", "a", "--quiesce", "maybe"], "'maybe' is not one of 'auto', 'required', 'never'", "backup --help"),
        (["backup"], "name domains, or --all, or --job NAME", "virsh list --all"),
        (["backup", "a", "--all"], "name domains, or --all, or --job NAME", "virsh list --all"),
        (["list", "-v", "-q"], "-v and -q exclude each other", "'vmbackup list --help'"),
        (["restore", "web@latest", "--at", "2026-11-24T03:00", "--output", "x"], "--at goes with the name", "web"),
        (["verify", "--read-data=0"], "--read-data=0 is not a percentage", "--read-data=10"),
        (["verify", "--read-data=most"], "--read-data=most is not a percentage", "--read-data=10"),
        (["init", "--chunk-size", "64 apples"], "--chunk-size: '64 apples' is not a size", "64KiB"),
    ],
)
def test_wrong_usage_is_2_with_a_hint(bare: Run, args: list[str], message: str, hint: str) -> None:
    result = bare(*args)
    assert result.code == 2, result.err
    first, second = result.err.splitlines()
    assert message in first
    assert hint in second
    told = bare("--json", *args)
    assert (told.code, told.err, told.json["error"]["kind"]) == (2, "", "usage")


def test_a_wrong_configuration_is_told_with_all_its_mistakes(bare: Run, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[libvirt]\nurl = "x"\n[host]\ncache_dir = 5\n')
    result = bare("--config", str(path), "list")
    assert result.code == 2
    assert result.err.splitlines() == [
        f"error: {path} has 2 mistakes:",
        f'  {path}:2: unknown key "url" in [libvirt]: did you mean "uri"?',
        f'  {path}:4: cache_dir = 5 must be a text in quotes: write it like "/an/absolute/path"',
        f"       correct {path}",
    ]
    told = bare("--config", str(path), "list", "--json").json["error"]
    assert told["mistakes"][0] == {
        "file": str(path),
        "line": 2,
        "key": "libvirt.url",
        "message": 'unknown key "url" in [libvirt]',
        "hint": 'did you mean "uri"?',
    }


def test_the_environment_names_the_configuration(bare: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMBACKUP_CONFIG", "/nowhere/config.toml")
    result = bare("list")
    assert (result.code, result.err.splitlines()[0]) == (
        2,
        "error: there is no configuration file /nowhere/config.toml",
    )


def test_an_unknown_repository_is_5(run: Run) -> None:
    result = run("--repository", "loca", "list")
    assert result.code == 5
    assert result.err == ('error: there is no repository "loca" in the configuration\n       did you mean "local"?\n')


def test_an_unknown_job_is_2(run: Run) -> None:
    result = run("backup", "--job", "nightlie")
    assert (result.code, result.err.splitlines()[1].strip()) == (2, 'did you mean "nightly"?')
