"""The commands on a repository in a bucket."""

from __future__ import annotations

import contextlib
import io
import json
import random
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.lab.ceph import USERS, Ceph, remove_bucket
from tests.lab.rclone import KEYS, Rclone
from tests.unit.engine.kit import RamKit
from vmbackup.cli import main
from vmbackup.cli.access import open_store_of
from vmbackup.cli.findings import look
from vmbackup.config.load import load

pytestmark = pytest.mark.real

CONFIG = """\
[libvirt]
uri = "test:///default"

[repositories.offsite]
url = "s3://{bucket}/vm/backups"
provider = "ceph"
endpoint_url = "{endpoint}"
access_key_file = "{folder}/access"
secret_key_file = "{folder}/secret"
{ca}passphrase_file = "{folder}/passphrase"

[host]
cache_dir = "{folder}/cache"

[daemon]
state_dir = "{folder}/state"
"""


class Program:
    """`vmbackup` with a repository in a bucket of its own."""

    def __init__(self, folder: Path, endpoint: str, keys: tuple[str, str], ca_file: Path | None = None) -> None:
        self.folder, self.bucket = folder, f"test-{secrets.token_hex(4)}"
        ca = f'ca_file = "{ca_file}"\n' if ca_file else ""
        for name, key in zip(("access", "secret"), keys, strict=True):
            self.write(name, key)
        self.write("config.toml", CONFIG.format(bucket=self.bucket, endpoint=endpoint, folder=folder, ca=ca))

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o600)

    def __call__(self, *args: str, code: int = 0) -> dict[str, Any]:
        """The JSON document that a command prints; it must end with `code`."""
        found, document = self.run(*args)
        assert found == code, f"{args}: {found}\n{document}"
        return document

    def run(self, *args: str) -> tuple[int, dict[str, Any]]:
        """Exit code and document, within this process: a start costs a second."""
        with contextlib.redirect_stdout(io.StringIO()) as out:
            code = main(["--config", str(self.folder / "config.toml"), "--json", *args])
        return code, json.loads(out.getvalue())

    def error(self, *args: str, code: int) -> tuple[str, str, str]:
        found = self(*args, code=code)["error"]
        assert found["exit_code"] == code
        return found["kind"], found["message"], found["hint"]

    def checks(self) -> dict[str, dict[str, str]]:
        """What `doctor` says of the repository; its exit code depends on the machine."""
        return {c["name"]: c for c in self.run("doctor")[1]["checks"] if c["subject"] == "offsite"}


@pytest.fixture
def vmbackup(ceph: Ceph, tmp_path: Path) -> Iterator[Program]:
    program = Program(tmp_path, ceph.https, USERS["vmbackup"], ceph.ca_file)
    yield program
    client = ceph.client()
    if program.bucket in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
        with contextlib.suppress(ClientError):  # what is locked stays until the server goes
            remove_bucket(client, program.bucket)
    client.close()


def test_the_whole_way(vmbackup: Program) -> None:
    """No bucket, then one; init, keys, list, verify, doctor, and a second init that is refused."""
    kind, message, hint = vmbackup.error("init", code=5)
    assert (kind, "there is no bucket" in message, "--create-bucket" in hint) == ("store_missing", True, True)
    assert vmbackup.error("list", code=6)[0] == "access"  # there is no passphrase yet
    assert vmbackup.checks()["store"]["fix"] == "vmbackup --repository offsite init --create-bucket"
    assert not (vmbackup.folder / "passphrase").exists()

    made = vmbackup("init", "--create-bucket")["repository"]
    assert made["url"] == f"s3://{vmbackup.bucket}/vm/backups"
    assert len(vmbackup("key", "list")["keys"]) == 2
    assert vmbackup("list")["points"] == []
    assert vmbackup("verify", "--read-data")["damaged"] == []
    command = [sys.executable, "-m", "vmbackup.cli", "--config", str(vmbackup.folder / "config.toml"), "verify"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    checks = vmbackup.checks()
    assert {"store", "bucket", "clock", "repository"} <= checks.keys()
    assert {check["status"] for check in checks.values()} == {"ok"}
    assert checks["bucket"]["message"] == "versions: off, object lock: off, no rule that expires objects"
    assert vmbackup.error("init", code=1)[:2] == ("repository", f"{made['url']} already holds a repository")


def test_what_is_wrong_is_told(vmbackup: Program, ceph: Ceph) -> None:
    """By a command and by doctor, with the same sentence; the exit code is that of a store that cannot be used."""
    vmbackup("init", "--create-bucket")
    right = {name: (vmbackup.folder / name).read_text() for name in ("access", "secret", "config.toml")}
    config = right["config.toml"]
    for name, text, said in (
        ("access", "AKNOBODY", "does not know this access key"),
        ("secret", "wrong", "the secret key does not fit"),
        ("config.toml", config.replace("ca_file", "# ca_file"), "the certificate of"),
    ):
        vmbackup.write(name, text)
        kind, message, hint = vmbackup.error("list", code=1)
        assert kind == "store_unavailable"
        assert said in message
        check = vmbackup.checks()["store"]
        assert check["status"] == "fail"
        assert said in check["message"]
        assert check["fix"] == hint
        vmbackup.write(name, right[name])
    vmbackup.write("config.toml", config.replace(ceph.https, "https://localhost:1"))
    assert "Connection refused" in vmbackup.error("list", code=1)[1]
    vmbackup.write("config.toml", config.replace(vmbackup.bucket, "nobody-made-this"))
    assert vmbackup.error("list", code=5)[0] == "store_missing"
    vmbackup.write("config.toml", config)
    (vmbackup.folder / "access").unlink()
    assert vmbackup.error("list", code=6)[:2] == (
        "access",
        f"the access key file {vmbackup.folder}/access does not exist",
    )
    assert "does not exist" in vmbackup.checks()["store"]["message"]
    vmbackup.write("access", "two\nlines\n")
    assert vmbackup.error("list", code=2)[0] == "config"


WRONG = {
    "access key": ("access", "AKNOBODY", "does not know this access key", "access_key_file"),
    "secret key": ("secret", "wrong", "the secret key does not fit", "secret_key_file"),
    "certificate": ("ca_file", "# ca_file", "is not trusted", "set ca_file"),
    "bucket": ("{bucket}", "nobody-made-this", "there is no bucket", "--create-bucket"),
    "port": ("{https}", "https://localhost:1", "Connection refused", "endpoint_url"),
    "name": ("{https}", "https://nobody.invalid", "Name or service not known", "endpoint_url"),
    "http to https": ("https://", "http://", "closed without an answer", "endpoint_url is https://"),
    "https to http": ("{https}", "{tls_on_http}", "speaks no TLS", "http://"),
}


@pytest.mark.parametrize("what", WRONG)
def test_every_command_says_the_same(
    vmbackup: Program, ceph: Ceph, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Wrong credentials and endpoints: a sentence, a hint, and an exit code, from backups as from lists and doctor."""
    monkeypatch.setattr("vmbackup.storage_backends.s3_retry.FIRST_PATIENCE", 0.3)
    vmbackup("init", "--create-bucket")
    old, new, said, hinted = WRONG[what]
    told = {"bucket": vmbackup.bucket, "https": ceph.https, "tls_on_http": ceph.http.replace("http:", "https:")}
    if old in ("access", "secret"):
        vmbackup.write(old, new)
    else:
        config = (vmbackup.folder / "config.toml").read_text()
        vmbackup.write("config.toml", config.replace(old.format(**told), new.format(**told)))
    code, kind = (5, "store_missing") if what == "bucket" else (1, "store_unavailable")
    for command in (["list"], ["backup", "test"]):
        found = vmbackup.error(*command, code=code)
        assert found[0] == kind
        assert said in found[1]
        assert hinted in found[2]
    check = vmbackup.checks()["store"]
    assert check["status"] == "fail"
    assert said in check["message"]
    assert hinted in check["fix"]


def test_a_bucket_that_expires_objects_is_refused(vmbackup: Program, ceph: Ceph) -> None:
    client = ceph.client()
    client.create_bucket(Bucket=vmbackup.bucket)
    rule = {"ID": "tidy", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 30}}
    client.put_bucket_lifecycle_configuration(Bucket=vmbackup.bucket, LifecycleConfiguration={"Rules": [rule]})
    kind, message, hint = vmbackup.error("init", code=1)
    assert kind == "store_unfit"
    assert "'tidy'" in message
    assert "remove the rule" in hint
    assert client.list_objects_v2(Bucket=vmbackup.bucket)["KeyCount"] == 0
    client.delete_bucket_lifecycle(Bucket=vmbackup.bucket)
    vmbackup("init")
    client.put_bucket_lifecycle_configuration(Bucket=vmbackup.bucket, LifecycleConfiguration={"Rules": [rule]})
    check = vmbackup.checks()["store"]
    assert (check["status"], "'tidy'" in check["message"]) == ("fail", True)
    client.close()


def test_object_lock(vmbackup: Program, ceph: Ceph) -> None:
    """A bucket that is made for it: the config is locked for the days and a generation, and doctor tells all of it."""
    made = vmbackup("init", "--create-bucket", "--object-lock", "30")["repository"]
    assert (made["object_lock_days"], made["store"]["settled_by"]) == (30, "versions")
    client = ceph.client()
    versions = client.list_object_versions(Bucket=vmbackup.bucket, Prefix="vm/backups/config/")["Versions"]
    told = client.get_object_retention(
        Bucket=vmbackup.bucket, Key=versions[0]["Key"], VersionId=versions[0]["VersionId"]
    )["Retention"]
    assert told["Mode"] == "COMPLIANCE"
    assert 36 < (told["RetainUntilDate"] - datetime.now(UTC)).total_seconds() / 86400 < 37.01
    checks = vmbackup.checks()
    assert {checks[name]["status"] for name in ("store", "bucket", "object-lock", "repository")} == {"ok"}
    assert checks["bucket"]["message"].startswith("versions: on, object lock: on, the order of versions tells")
    assert checks["access-key"]["status"] == "warn"
    assert (
        "may delete versions of objects, change the bucket's versioning, set rules" in checks["access-key"]["message"]
    )
    vmbackup.error("init", "--object-lock", "0", code=2)
    assert vmbackup("prune")["locked"] == {"objects": 0, "bytes": 0, "until": None}

    [kept] = (vmbackup.folder / "state/stores").iterdir()
    assert json.loads(kept.read_text())["object_lock"] is True
    policy: dict[str, Any] = {"Effect": "Deny", "Principal": "*", "Action": ["s3:GetBucketObjectLockConfiguration"]}
    policy["Resource"] = [f"arn:aws:s3:::{vmbackup.bucket}"]
    document = {"Version": "2012-10-17", "Statement": [policy]}
    client.put_bucket_policy(Bucket=vmbackup.bucket, Policy=json.dumps(document))
    assert vmbackup.checks()["store"]["status"] == "ok"  # what is not told has not changed
    client.delete_bucket_policy(Bucket=vmbackup.bucket)
    client.close()


def test_a_bucket_that_locks_nothing_is_refused(vmbackup: Program, ceph: Ceph) -> None:
    """Before anything is made in it; also one that is there already, and is not made again."""
    client = ceph.client()
    client.create_bucket(Bucket=vmbackup.bucket)
    kind, message, hint = vmbackup.error("init", "--create-bucket", "--object-lock", "30", code=1)
    assert (kind, "locks nothing" in message, "--object-lock DAYS --create-bucket" in hint) == (
        "store_unfit",
        True,
        True,
    )
    assert not (vmbackup.folder / "passphrase").exists()
    assert client.list_objects_v2(Bucket=vmbackup.bucket)["KeyCount"] == 0
    client.close()


def test_a_change_for_the_worse_is_told_until_it_is_meant(vmbackup: Program, ceph: Ceph) -> None:
    """By doctor, and by a run before it begins."""
    client = ceph.client()
    client.create_bucket(Bucket=vmbackup.bucket)
    client.put_bucket_versioning(Bucket=vmbackup.bucket, VersioningConfiguration={"Status": "Enabled"})
    vmbackup("init")
    client.put_bucket_versioning(Bucket=vmbackup.bucket, VersioningConfiguration={"Status": "Suspended"})
    config = load(vmbackup.folder / "config.toml")
    [kept] = (vmbackup.folder / "state/stores").iterdir()
    for _ in range(2):
        told = [c for c in vmbackup.run("doctor")[1]["checks"] if c["name"] == "store" and c["status"] == "warn"]
        assert ["keeps no versions any more" in c["message"] and str(kept) in c["fix"] for c in told] == [True]
        with closing(open_store_of(config.repositories["offsite"])) as store:
            assert look(config.daemon.state_dir, store)
    kept.unlink()
    assert vmbackup.checks()["store"]["status"] == "ok"
    assert vmbackup.checks()["store"]["status"] == "ok"
    client.close()


def test_a_server_that_ignores_if_none_match_is_refused(tmp_path: Path) -> None:
    with Rclone() as rclone:
        program = Program(tmp_path, rclone.http, KEYS)
        kind, message, _ = program.error("init", "--create-bucket", code=1)
        assert (kind, "does not keep what was put first" in message) == ("repository", True)
        assert not (tmp_path / "passphrase").exists()
        assert program.checks()["store"]["status"] == "fail"


def test_a_bucket_is_made_for_buckets_only(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(f'[repositories.a]\nurl = "{tmp_path}/r"\n[daemon]\nstate_dir = "{tmp_path}/s"\n')
    command = [sys.executable, "-m", "vmbackup.cli", "--config", str(config), "init", "--create-bucket"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "is in no bucket" in done.stderr) == (2, True)


def test_copies_into_a_bucket_and_back(vmbackup: Program) -> None:
    """From a folder to the bucket, and back into another folder: every point restores as it was."""
    kit = RamKit(vmbackup.folder, {"vda": 2 << 20})
    text = (vmbackup.folder / "config.toml").read_text()
    for name in ("repository", "third"):
        secret = f"{vmbackup.folder}/{'known' if name == 'repository' else 'passphrase'}"
        text += f'[repositories.{name}]\nurl = "{vmbackup.folder}/{name}"\npassphrase_file = "{secret}"\n'
    vmbackup.write("config.toml", text)
    vmbackup.write("known", "a passphrase for tests")
    vmbackup("init", "--create-bucket")
    vmbackup("--repository", "third", "init", "--replica-of", "offsite")
    chance = random.Random(3)
    for _ in range(2):
        kit.disk().write(chance.randrange(1 << 20), chance.randbytes(200_000))
        kit.backup()
        assert len(vmbackup("copy", "--from", "repository", "--to", "offsite")["copied"]) == 1
    assert len(vmbackup("copy", "--from", "offsite", "--to", "third", "guest")["copied"]) == 2
    assert vmbackup("--repository", "offsite", "verify", "--read-data")["damaged"] == []
    for point_id, disks in kit.kept.items():
        output = str(vmbackup.folder / point_id)
        done = vmbackup("--repository", "third", "restore", point_id, "--format", "raw", "--output", output)
        assert Path(done["files"][0]["path"]).read_bytes() == disks["vda"]
