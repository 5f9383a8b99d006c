"""`vmbackup copy`, and `copy_to` of a job, between real repositories of guests in memory."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.conftest import Run
from tests.unit.engine.kit import RamKit, sha
from vmbackup.cli import access
from vmbackup.hypervisor.source import DomainInfo

MIB = 1 << 20
EXTRA = """
[repositories.offsite]
url = "file://{folder}/offsite"
passphrase_file = "{folder}/secrets/offsite"

[repositories.gone]
url = "file://{folder}/gone"
passphrase_file = "{folder}/secrets/offsite"

[jobs.both]
domains = ["*"]
copy_to = ["offsite"]

[jobs.lost]
domains = ["*"]
copy_to = ["gone"]
"""


@pytest.fixture
def kit(tmp_path: Path, config_file: Path) -> RamKit:
    """A guest with three points in `local`; `offsite` is another repository's name."""
    config_file.write_text(config_file.read_text() + EXTRA.format(folder=tmp_path))
    made = RamKit(tmp_path, {"vda": MIB})
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "passphrase").write_text("a passphrase for tests")
    (secrets / "passphrase").chmod(0o600)
    for number in range(3):
        made.disk().write(number * 100_000, random.Random(number).randbytes(100_000))
        made.backup()
    return made


@pytest.fixture
def offsite(kit: RamKit, run: Run) -> Callable[[], set[str]]:
    """The repository, made; gives the ids of its points, each restored and compared."""
    assert run("--repository", "offsite", "init").code == 0

    def look() -> set[str]:
        found = {point["id"] for point in run("--repository", "offsite", "--json", "list").json["points"]}
        for number, point_id in enumerate(found):
            folder = kit.root / f"restored-{number}-{len(found)}"
            done = run("--repository", "offsite", "restore", point_id, "--output", str(folder), "--format", "raw")
            assert done.code == 0
            assert sha((folder / "vda.raw").read_bytes()) == sha(kit.kept[point_id]["vda"])
        return found

    return look


def test_a_copy_is_told_point_by_point(run: Run, kit: RamKit, offsite: Callable[[], set[str]]) -> None:
    first = run("copy", "--from", "local", "--to", "offsite")
    assert (first.code, first.err) == (0, "")
    lines = first.out.splitlines()
    assert lines[0].startswith(f"guest: {kit.points()[-1].id} copied to offsite, 9")
    assert lines[-1] == "3 restore points copied to offsite, 0 needed no copy"
    assert offsite() == set(kit.kept)
    again = run("--json", "copy", "--from", "local", "--to", "offsite", "guest").json
    assert again == {"repository": "offsite", "copied": [], "skipped": 3, "failed": []}
    kit.backup()
    document = run("--json", "copy", "--from", "local", "--to", "offsite").json
    (point,) = document["copied"]
    assert (point["id"], point["copied_from"], document["skipped"]) == (kit.points()[0].id, kit.repository.id, 3)
    assert offsite() == set(kit.kept)
    assert f"copied from  repository {kit.repository.id}" in run("--repository", "offsite", "show", point["id"]).out


def test_damage_is_told_and_is_4(run: Run, kit: RamKit, offsite: Callable[[], set[str]]) -> None:
    newest = kit.points()[0]
    (pack,) = (kit.root / "repository" / "data").rglob(f"{newest.session.hex()}-0")
    pack.unlink()
    done = run("copy", "--from", "local", "--to", "offsite")
    assert done.code == 4
    assert done.err.startswith(f"error: guest: {newest.id}: data/")
    assert done.out.splitlines()[-1] == "2 restore points copied to offsite, 0 needed no copy; 1 failed"
    document = run("--json", "copy", "--from", "local", "--to", "offsite").json
    assert [(f["domain"], f["point"], f["kind"]) for f in document["failed"]] == [("guest", newest.id, "damaged")]
    assert document["skipped"] == 2
    assert len(offsite()) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--from", "local", "--to", "local"), 2, '"local" is where the restore points are'),
        (("--from", "nowhere", "--to", "local"), 5, 'no repository "nowhere"'),
        (("--from", "local", "--to", "offsit"), 5, 'did you mean "offsite"'),
        (("--from", "local", "--to", "gone"), 5, "gone"),
        (("--from", "local", "--to", "offsite", "nobody"), 5, "nobody"),
        (("--to", "offsite"), 2, "--from"),
        (("--from", "local"), 2, "--to"),
    ],
)
def test_bad_input(
    run: Run, offsite: Callable[[], set[str]], arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = run("copy", *arguments)
    assert (done.code, said in done.err) == (code, True), done.err
    assert "Traceback" not in done.err
    assert offsite() == set()


def test_the_wrong_passphrase_is_6(run: Run, kit: RamKit, offsite: Callable[[], set[str]]) -> None:
    secret = kit.root / "secrets" / "offsite"
    right = secret.read_text()
    secret.write_text("wrong")
    assert run("copy", "--from", "local", "--to", "offsite").code == 6
    secret.write_text(right)


@pytest.fixture
def backed_up_here(kit: RamKit, monkeypatch: pytest.MonkeyPatch) -> None:
    """`backup` works on the guest in memory."""
    host: Any = kit.host
    host.own_domains = lambda: [DomainInfo("guest", kit.guest.uuid, 1, "running")]

    @contextlib.contextmanager
    def opened(_config: object) -> Iterator[Any]:
        yield host

    monkeypatch.setattr(access, "opened_host", opened)


def keep(kit: RamKit) -> str:
    """What the newest point must restore to; gives its id."""
    kit.reopen()
    newest = kit.points()[0]
    kit.kept[newest.id] = {"vda": bytes(kit.disk().data)}
    return newest.id


@pytest.mark.usefixtures("backed_up_here")
def test_a_job_copies_what_is_new(run: Run, kit: RamKit, offsite: Callable[[], set[str]]) -> None:
    done = run("backup", "--job", "both")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-1] == "4 restore points copied to offsite, 0 needed no copy"
    keep(kit)
    assert offsite() == set(kit.kept)
    document = run("--json", "backup", "--job", "both").json
    newest = keep(kit)
    assert [point["id"] for point in document["points"]] == [newest]
    (copies,) = document["copies"]
    assert (copies["repository"], [point["id"] for point in copies["copied"]]) == ("offsite", [newest])
    assert offsite() == set(kit.kept)


@pytest.mark.usefixtures("backed_up_here")
def test_a_job_whose_copy_fails_is_3(run: Run, kit: RamKit) -> None:
    """The backup is made, and the failure of the copy told."""
    done = run("backup", "--job", "lost")
    assert done.code == 3
    assert "error: copying to gone: " in done.err
    assert len(kit.points()) == 4
    document = run("--json", "backup", "--job", "lost").json
    assert len(document["points"]) == 1
    assert document["failed"] == []
    assert document["copies"][0]["failed"][0]["kind"] == "store_missing"


def test_a_replica_by_the_commands(run: Run, kit: RamKit, tmp_path: Path) -> None:
    """Made with a passphrase of its own; the first one's opens it too. Copies are told as any."""
    made = run("--repository", "offsite", "init", "--replica-of", "local")
    assert (made.code, made.err) == (0, "")
    assert "All passphrases and recovery keys of local open it too." in made.out
    assert len(run("--repository", "offsite", "--json", "key", "list").json["keys"]) == 3
    document = run("--json", "copy", "--from", "local", "--to", "offsite").json
    assert [point["id"] for point in document["copied"]] == [point.id for point in reversed(kit.points())]
    assert document["copied"][0]["copied_from"] == kit.repository.id
    (tmp_path / "secrets" / "offsite").write_text("a passphrase for tests")
    assert len(run("--repository", "offsite", "--json", "list").json["points"]) == 3
    assert run("--repository", "offsite", "verify", "--read-data").code == 0
    assert run("--repository", "offsite", "restore", "guest", "--output", str(tmp_path / "out")).code == 0
    freed = run("--repository", "offsite", "--json", "show", "guest@latest").json["points"][0]["freed_bytes"]
    assert freed > 90_000
    assert run("--json", "copy", "--from", "offsite", "--to", "local").json["skipped"] == 3  # they come from there


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--replica-of", "local", "--chunk-size", "64KiB"), 2, "leave out --chunk-size"),
        (("--replica-of", "local", "--recovery-file", "x"), 2, "leave out --recovery-file"),
        (("--replica-of", "offsite"), 2, "itself"),
        (("--replica-of", "nowhere"), 5, 'no repository "nowhere"'),
        (("--replica-of", "gone"), 5, "gone"),
    ],
)
def test_a_replica_of_what_cannot_be(
    run: Run, kit: RamKit, tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    """Nothing is made, no passphrase either."""
    done = run("--repository", "offsite", "init", *arguments)
    assert (done.code, said in done.err) == (code, True), done.err
    assert not (tmp_path / "secrets" / "offsite").exists()
    assert not list((tmp_path / "offsite").rglob("config"))


def test_a_replica_takes_no_other_realm(run: Run, kit: RamKit) -> None:
    """It is a replica of one repository; what stands in that one's place now has other keys."""
    assert run("--repository", "offsite", "init", "--replica-of", "local").code == 0
    again = run("--repository", "offsite", "init", "--replica-of", "local")
    assert (again.code, "already holds a repository" in again.err) == (1, True)
    assert run("--repository", "gone", "init").code == 0
    refused = run("copy", "--from", "gone", "--to", "offsite")
    assert (refused.code, "is a replica of another repository" in refused.err) == (1, True), refused.err


@pytest.mark.parametrize("replica", [False, True])
def test_a_copy_that_is_damaged_is_made_again(run: Run, kit: RamKit, tmp_path: Path, replica: bool) -> None:
    """The damaged one is then forgotten by the last part of its name, and the whole one stays."""
    assert run("--repository", "offsite", "init", *(("--replica-of", "local") if replica else ())).code == 0
    run("copy", "--from", "local", "--to", "offsite")
    (damaged, *_) = sorted(p for p in (tmp_path / "offsite" / "points").rglob("*") if p.is_file())
    damaged.write_bytes(damaged.read_bytes()[:-1] + bytes((damaged.read_bytes()[-1] ^ 1,)))
    assert run("--repository", "offsite", "list").code == 4
    made = run("--json", "copy", "--from", "local", "--to", "offsite").json
    assert [point["id"] for point in made["copied"]] == [kit.points()[-1].id]
    assert run("--repository", "offsite", "forget", damaged.name).code == 0
    listed = run("--repository", "offsite", "--json", "list")
    assert (listed.code, {point["id"] for point in listed.json["points"]}) == (0, set(kit.kept))
    assert run("--repository", "offsite", "prune").code == 0
    assert run("--repository", "offsite", "verify", "--read-data").code == 0


def test_a_replica_follows_a_rotation(run: Run, kit: RamKit, tmp_path: Path) -> None:
    """Its own passphrase goes on to open it."""
    assert run("--repository", "offsite", "init", "--replica-of", "local").code == 0
    assert run("key", "rotate", "--recovery-file", str(tmp_path / "recovery"), "--drop-others").code == 0
    assert run("copy", "--from", "local", "--to", "offsite").code == 0
    assert len(run("--repository", "offsite", "--json", "list").json["points"]) == 3
    assert len(run("--repository", "offsite", "--json", "key", "list").json["keys"]) == 3
