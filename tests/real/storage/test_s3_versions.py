"""A bucket made for object lock: what was put first holds, whatever is put or deleted after it, and can be locked."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.lab.ceph import USERS, remove_bucket
from tests.lab.fault_proxy import FaultProxy
from tests.real.storage.policies import PRUNER, WRITER, policy
from vmbackup.storage_backends import (
    DeleteRefused,
    ObjectExists,
    ObjectMissing,
    S3Settings,
    Store,
    StoreUnavailable,
    StoreUnfit,
)
from vmbackup.storage_backends.s3_requests import Requests
from vmbackup.storage_backends.s3_versions import Versions

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def locking(client: Any) -> str:
    """A bucket with object lock. It stays, with what is locked in it: the server is thrown away with its data."""
    name = f"test-{secrets.token_hex(4)}"
    client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    return name


@pytest.fixture
def url(locking: str, prefix: str) -> str:
    return f"s3://{locking}/{prefix}"


@pytest.fixture
def store(make_store: Callable[..., Store], url: str) -> Store:
    return make_store(url=url)


@pytest.fixture
def thief(client: Any, locking: str, prefix: str) -> Callable[[str, bytes | None], None]:
    """Puts over an object, or deletes it by a marker, past the store."""

    def act(key: str, data: bytes | None) -> None:
        if data is None:
            client.delete_object(Bucket=locking, Key=f"{prefix}/{key}")
        else:
            client.put_object(Bucket=locking, Key=f"{prefix}/{key}", Body=data)

    return act


def test_what_was_put_first_holds(
    store: Store, make_store: Callable[..., Store], url: str, thief: Callable[[str, bytes | None], None]
) -> None:
    """Overwritten, deleted, overwritten again: each verb sees the first, also of a store that remembers nothing."""
    store.put("a/b", b"one")
    store.put("a/c", b"more")
    thief("a/b", b"longer")
    thief("a/b", None)
    thief("a/c", None)
    thief("a/d", None)
    thief("a/b", b"")
    for seen in (store, make_store(url=url)):
        assert [(e.key, e.size) for e in seen.list("a/")] == [("a/b", 3), ("a/c", 4)]
        assert [e.key for e in seen.list("a/", after="a/b")] == ["a/c"]
        assert (seen.get("a/b"), seen.get("a/b", 1, 2), seen.get("a/c")) == (b"one", b"ne", b"more")
        assert seen.stat("a/b").size == 3
        seen.put("a/b", b"one")
        with pytest.raises(ObjectExists):
            seen.put("a/b", b"two")
        with pytest.raises(ObjectMissing):
            seen.get("a/d")


def test_a_delete_frees_every_version(
    store: Store,
    make_store: Callable[..., Store],
    url: str,
    client: Any,
    locking: str,
    prefix: str,
    thief: Callable[[str, bytes | None], None],
) -> None:
    """And other stores that remember the object notice."""
    store.put("a", b"one")
    store.put("ab", b"other")
    assert store.get("a") == b"one"
    thief("a", b"two")
    thief("a", None)
    make_store(url=url).delete("a")
    told = client.list_object_versions(Bucket=locking, Prefix=f"{prefix}/")
    assert [v["Key"] for v in told["Versions"]] == [f"{prefix}/ab"]
    assert told.get("DeleteMarkers", []) == []
    with pytest.raises(ObjectMissing):
        store.get("a")
    make_store(url=url).put("a", b"three")
    assert store.get("a") == b"three"
    make_store(url=url).delete("a")
    make_store(url=url).put("a", b"four")
    assert store.get("a") == b"four"


def test_more_versions_than_a_page(
    store: Store, monkeypatch: pytest.MonkeyPatch, thief: Callable[[str, bytes | None], None]
) -> None:
    """The first version is found behind any number of later ones, also in a list."""
    monkeypatch.setattr("vmbackup.storage_backends.s3_versions._PAGE", 2)
    for name in ("a", "b"):
        store.put(name, name.encode())
        for number in range(4):
            thief(name, b"x" * number)
            thief(name, None)
    store.put("b0", b"")
    assert [(e.key, e.size) for e in store.list("")] == [("a", 1), ("b", 1), ("b0", 0)]
    assert [e.key for e in store.list("", after="a")] == ["b", "b0"]
    assert store.get("b") == b"b"


def test_one_of_racing_puts_is_the_first(make_store: Callable[..., Store], url: str) -> None:
    """Though the server takes them all; what came second is taken away again."""
    stores = [make_store(url=url) for _ in range(4)]
    for key in ("r1", "r2", "r3"):
        won = []

        def put(number: int, key: str = key, won: list[int] = won) -> None:
            try:
                stores[number].put(key, b"%d" % number * 1000)
                won.append(number)
            except ObjectExists:
                pass

        racers = [threading.Thread(target=put, args=(number,)) for number in range(4)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        assert len(won) == 1
        assert {store.get(key) for store in stores} == {b"%d" % won[0] * 1000}


def test_an_order_by_the_time_of_a_beginning_is_not_enough(
    settings: S3Settings, locking: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A put that begins first and ends last comes to stand before one that was told to be the first."""
    requests = Requests(settings, locking, "s3://x at y")
    versions = Versions(requests)
    assert versions.settles(f"{prefix}/one")
    items = Versions._items
    monkeypatch.setattr(Versions, "_items", lambda *a, **k: reversed(list(items(*a, **k))))
    assert not versions.settles(f"{prefix}/two")
    requests.client.close()


def test_a_server_that_orders_otherwise_is_not_fit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Versions, "settles", lambda *_: False)
    assert store.probe().lacks == ("does not keep what was put first",)


def test_a_locked_object_stays(store: Store, client: Any, locking: str, prefix: str) -> None:
    """Until its time is over, nobody's key deletes it; a lock is extended and never shortened."""
    store.put("a", b"one")
    first = store.lock("a", 3)
    assert 0 <= first - time.time() - 3 < 5
    told = client.head_object(Bucket=locking, Key=f"{prefix}/a")
    assert (told["ObjectLockMode"], told["ObjectLockRetainUntilDate"].timestamp()) == ("COMPLIANCE", first)
    assert store.lock("a", 1) == first
    extended = store.lock("a", 5)
    assert extended > first
    with pytest.raises(DeleteRefused) as caught:
        store.delete("a")
    assert (caught.value.key, caught.value.until) == ("a", extended)
    with pytest.raises(ClientError):
        client.delete_object(
            Bucket=locking, Key=f"{prefix}/a", VersionId=told["VersionId"], BypassGovernanceRetention=True
        )
    assert store.get("a") == b"one"
    with pytest.raises(ObjectMissing):
        store.lock("b", 1)


def test_a_lock_carries_the_checksum_that_old_servers_want(
    make_store: Callable[..., Store], settings: S3Settings, url: str, proxy: FaultProxy
) -> None:
    """Content-MD5, and none of those that boto3 would put in its place."""
    store = make_store(replace(settings, endpoint=proxy.http), url)
    store.put("a", b"one")
    store.lock("a", 1)
    [head] = [r.head.lower() for r in proxy.seen if r.method == "PUT" and b"retention" in r.head.split(b"\r\n")[0]]
    assert b"\r\ncontent-md5: " in head
    assert b"checksum" not in head


def test_a_lock_that_the_server_forgets_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read back: 200 alone says nothing."""
    store.put("a", b"one")
    monkeypatch.setattr(Versions, "locked_until", lambda *_: None)
    with pytest.raises(StoreUnavailable, match="says that it locked"):
        store.lock("a", 1)


def test_where_nothing_can_be_locked(make_store: Callable[..., Store], client: Any, bucket: str) -> None:
    """A bucket without versions, and one with versions that was not made for object lock."""
    name = f"test-{secrets.token_hex(4)}"
    client.create_bucket(Bucket=name)
    client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    for url in (f"s3://{bucket}/none", f"s3://{name}"):
        store = make_store(url=url)
        store.put("a", b"")
        with pytest.raises(StoreUnfit, match="locks nothing"):
            store.lock("a", 1)
    remove_bucket(client, name)


def test_two_keys(
    client: Any, locking: str, prefix: str, settings: S3Settings, make_store: Callable[..., Store], store: Store
) -> None:
    """The policies of docs/operations.md: a writer's key does all but delete, a pruner's deletes what is not locked."""
    other = replace(settings, access_key=USERS["other"][0], secret_key=USERS["other"][1])
    host = make_store(other, f"s3://{locking}/{prefix}")
    client.put_bucket_policy(Bucket=locking, Policy=policy(locking, {"other": WRITER, "vmbackup": PRUNER}))
    found = host.probe(powers=True)
    assert found.lacks == ()
    assert found.bucket is not None
    assert (found.bucket.unknown, found.bucket.powers) == ((), ())
    host.put("a", b"one")
    host.put("b", b"two")
    host.lock("a", 2)
    with pytest.raises(DeleteRefused) as caught:
        host.delete("b")
    assert caught.value.until is None
    assert (host.get("b"), store.get("a")) == (b"two", b"one")
    client.put_bucket_policy(Bucket=locking, Policy=policy(locking, {"other": PRUNER, "vmbackup": PRUNER}))
    assert host.probe(powers=True).bucket.powers == ("delete versions of objects",)  # type: ignore[union-attr]
    host.delete("b")
    with pytest.raises(DeleteRefused):
        host.delete("a")
    client.delete_bucket_policy(Bucket=locking)


def test_what_the_owner_of_a_bucket_may(store: Store) -> None:
    """And what the tries leave: nothing."""
    found = store.probe(powers=True).bucket
    assert found is not None
    assert found.powers == (
        "delete versions of objects",
        "change the bucket's versioning",
        "set rules that delete objects",
    )
    assert list(store.list("")) == []


def test_a_rule_for_old_versions_is_refused(store: Store, client: Any, locking: str) -> None:
    """It is the oldest version that holds."""
    rule = {
        "ID": "old",
        "Status": "Enabled",
        "Filter": {"Prefix": ""},
        "NoncurrentVersionExpiration": {"NoncurrentDays": 1},
    }
    client.put_bucket_lifecycle_configuration(Bucket=locking, LifecycleConfiguration={"Rules": [rule]})
    with pytest.raises(StoreUnfit, match="'old'"):
        store.probe()
    client.delete_bucket_lifecycle(Bucket=locking)


def test_the_policies_are_those_of_the_documentation() -> None:
    text = (Path(__file__).parents[3] / "docs/operations.md").read_text()
    start = text.index("```json") + len("```json")
    writer, pruner = json.loads(text[start : text.index("```", start)])["Statement"]
    assert (writer["Action"], writer["Action"] + pruner["Action"]) == (WRITER, PRUNER)
