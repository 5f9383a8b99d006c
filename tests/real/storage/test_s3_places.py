"""What real servers answer to wrong keys, missing buckets and wrong clocks, and buckets that are not fit."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.lab.ceph import USERS, Ceph, remove_bucket
from vmbackup.storage_backends import (
    ObjectMissing,
    S3Settings,
    Store,
    StoreError,
    StoreMissing,
    StoreUnavailable,
    StoreUnfit,
    open_store,
)

pytestmark = pytest.mark.real


def uses(store: Store) -> list[Callable[[], object]]:
    return [
        lambda: store.get("a/b"),
        lambda: store.read_into("a/b", 0, memoryview(bytearray(1))),
        lambda: store.stat("a/b"),
        lambda: list(store.list("a/")),
        lambda: store.put("a/c", b"1"),
        lambda: store.delete("a/b"),
        store.probe,
    ]


@pytest.fixture
def own_bucket(client: Any) -> Iterator[Callable[..., str]]:
    """Makes buckets that a test may set up as it likes."""
    made: list[str] = []

    def make(**options: Any) -> str:
        made.append(f"test-{secrets.token_hex(4)}")
        client.create_bucket(Bucket=made[-1], **options)
        return made[-1]

    yield make
    for name in made:
        remove_bucket(client, name)


WRONG = {
    "access key": ({"access_key": "AKNOBODY"}, "does not know this access key"),
    "secret key": ({"secret_key": "wrong"}, "the secret key does not fit the access key"),
    "somebody else's keys": (dict(zip(("access_key", "secret_key"), USERS["other"], strict=True)), "may not"),
    "server": ({"endpoint": "http://127.0.0.1:1", "patience": 0.5}, "Connection refused"),
    "name": ({"endpoint": "http://nobody.invalid", "patience": 0.5}, "cannot"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_settings(make_store: Callable[..., Store], settings: S3Settings, what: str) -> None:
    """Each verb says what is wrong and what to do; none takes it for a missing object."""
    make_store().put("a/b", b"1")
    changed, message = WRONG[what]
    for use in uses(make_store(replace(settings, **changed))):  # type: ignore[arg-type]
        with pytest.raises(StoreUnavailable, match=message) as caught:
            use()
        assert caught.value.hint
    assert make_store().get("a/b") == b"1"


def test_no_keys_at_all(
    make_store: Callable[..., Store], settings: S3Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StoreUnavailable, match="no access key"):
        make_store(replace(settings, access_key=None, secret_key=None)).get("a")


def test_certificates(make_store: Callable[..., Store], settings: S3Settings, ceph: Ceph) -> None:
    secure = replace(settings, endpoint=ceph.https)
    with pytest.raises(StoreUnavailable, match=r"is not trusted: .*certificate"):
        make_store(secure).stat("a")
    with pytest.raises(StoreUnavailable, match="speaks no TLS"):
        make_store(replace(secure, endpoint=ceph.http.replace("http:", "https:"))).stat("a")
    with pytest.raises(StoreUnavailable, match=r"the ca_file /nowhere\.pem cannot be read"):
        make_store(replace(secure, ca_file="/nowhere.pem"))
    make_store(replace(secure, ca_file=str(ceph.ca_file))).put("a", b"1")


def test_a_clock_that_is_a_day_off(make_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch) -> None:
    """The server itself refuses it; signatures of a quarter of an hour ago are no good."""
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda *_, **__: _yesterday())
    with pytest.raises(StoreUnavailable, match="clocks of this machine and") as caught:
        list(make_store().list(""))
    assert "set-ntp" in caught.value.hint


def _yesterday() -> datetime:
    return (datetime.now(UTC) - timedelta(days=1)).replace(tzinfo=None)


def test_a_missing_bucket(settings: S3Settings, make_store: Callable[..., Store]) -> None:
    store = make_store(url="s3://nobody-made-this/x")
    for use in uses(store):
        with pytest.raises(StoreMissing, match="there is no bucket nobody-made-this at http://"):
            use()


def test_a_bucket_is_made_on_demand(client: Any, settings: S3Settings) -> None:
    name = f"test-{secrets.token_hex(4)}"
    for _ in range(2):
        store = open_store(f"s3://{name}/x", settings, create=True)
        store.put("a", b"1")
        store.close()
    remove_bucket(client, name)
    client.create_bucket(Bucket=name)
    other = replace(settings, access_key=USERS["other"][0], secret_key=USERS["other"][1])
    with pytest.raises(StoreUnavailable, match="belongs to somebody else"):
        open_store(f"s3://{name}/x", other, create=True)
    remove_bucket(client, name)


def test_a_key_that_may_read_and_not_list(
    own_bucket: Callable[..., str], client: Any, settings: S3Settings, make_store: Callable[..., Store]
) -> None:
    """To it a missing object is answered by 403: that is said, and no object is told to be lost."""
    name = own_bucket()
    make_store(url=f"s3://{name}").put("a/b", b"1")
    _allow(client, name, ["s3:GetObject"])
    store = make_store(replace(settings, access_key=USERS["other"][0], secret_key=USERS["other"][1]), f"s3://{name}")
    assert store.get("a/b") == b"1"
    for read in (store.get, store.stat):
        with pytest.raises(StoreUnavailable, match="may not list"):
            read("a/c")
    _allow(client, name, ["s3:GetObject", "s3:ListBucket"])
    for read in (store.get, store.stat):
        with pytest.raises(ObjectMissing):
            read("a/c")
    _allow(client, name, ["s3:ListBucket"])
    for read in (store.get, store.stat):
        with pytest.raises(StoreUnavailable, match="may not read a/b"):
            read("a/b")


def _allow(client: Any, bucket: str, actions: list[str]) -> None:
    import json

    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": ["arn:aws:iam:::user/other"]},
        "Action": actions,
        "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
    }
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))


def test_a_rule_that_expires_objects_is_refused(
    own_bucket: Callable[..., str], client: Any, make_store: Callable[..., Store]
) -> None:
    """And nothing is put to find that out."""
    name = own_bucket()
    rule = {"ID": "tidy", "Status": "Enabled", "Filter": {"Prefix": "x/"}, "Expiration": {"Days": 30}}
    client.put_bucket_lifecycle_configuration(Bucket=name, LifecycleConfiguration={"Rules": [rule]})
    with pytest.raises(StoreUnfit, match="deletes objects by itself, by its lifecycle rule 'tidy'"):
        make_store(url=f"s3://{name}/x").probe()
    assert list(make_store(url=f"s3://{name}").list("")) == []
    assert make_store(url=f"s3://{name}/y").probe().lacks == ()


def test_a_default_retention_is_refused(
    own_bucket: Callable[..., str], client: Any, make_store: Callable[..., Store]
) -> None:
    """Versions and locks alone are not. Ceph 16 ignores If-None-Match there, and the order of versions stands in."""
    name = own_bucket(ObjectLockEnabledForBucket=True)
    store = make_store(url=f"s3://{name}")
    found = store.probe()
    assert found.lacks == ()
    assert found.bucket is not None
    assert not found.bucket.conditional
    assert (found.bucket.versioning, found.bucket.object_lock, found.bucket.unknown) == (True, True, ())
    client.put_object_lock_configuration(
        Bucket=name,
        ObjectLockConfiguration={
            "ObjectLockEnabled": "Enabled",
            "Rule": {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}},
        },
    )
    before = len(list(store.list("")))
    with pytest.raises(StoreUnfit, match=r"locks each new object for 1 days \(GOVERNANCE\)"):
        store.probe()
    assert len(list(store.list(""))) == before


def test_a_folder_that_a_web_console_made_is_no_occupant(
    own_bucket: Callable[..., str], client: Any, make_store: Callable[..., Store]
) -> None:
    name = own_bucket()
    client.put_object(Bucket=name, Key="x/", Body=b"")
    client.put_object(Bucket=name, Key="y", Body=b"")
    assert list(make_store(url=f"s3://{name}/x").list("")) == []


def test_neighbours_in_a_bucket_do_not_see_each_other(make_store: Callable[..., Store], bucket: str) -> None:
    one, other = make_store(url=f"s3://{bucket}/n/one"), make_store(url=f"s3://{bucket}/n/one-more")
    other.put("a", b"1")
    assert list(one.list("")) == []
    with pytest.raises(StoreError):
        one.get("a")


def test_buckets_of_one_name_at_two_servers_are_two_places(
    make_store: Callable[..., Store], settings: S3Settings, ceph: Ceph
) -> None:
    """What a host remembers of the repository in one says nothing of the other."""
    one, other = make_store(), make_store(replace(settings, endpoint=ceph.https, ca_file=str(ceph.ca_file)))
    assert one.url == other.url
    assert one.place != other.place
