"""The store in a bucket keeps the contract: over http, and (`make torture`) over https and on rclone."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.lab.ceph import Ceph, remove_bucket
from tests.lab.rclone import KEYS, Rclone
from tests.unit.storage.contract import StoreContract
from vmbackup.storage_backends import ObjectTruncated, S3Settings, Store, open_store

pytestmark = pytest.mark.real


class _Remote(StoreContract):
    ROUNDS_OF_RACERS = 10
    KILLS = 4
    LISTS = 60


class TestCephOverHttp(_Remote):
    """The contract against Ceph's gateway."""

    @pytest.fixture
    def settings(self, settings: S3Settings) -> S3Settings:
        return settings


@pytest.mark.torture
class TestCephOverHttps(_Remote):
    """The same by TLS: other headers go over the wire there, which Ceph refuses if they are wrong."""

    @pytest.fixture
    def settings(self, settings: S3Settings, ceph: Ceph) -> S3Settings:
        return replace(settings, endpoint=ceph.https, ca_file=str(ceph.ca_file))


@pytest.mark.torture
class TestRclone(_Remote):
    """rclone ignores If-None-Match. All but what rests on that holds; the probe finds it out."""

    @pytest.fixture
    def settings(self, rclone: Rclone) -> S3Settings:
        return S3Settings(rclone.http, access_key=KEYS[0], secret_key=KEYS[1])

    @pytest.fixture
    def bucket(self) -> str:
        return f"test-{secrets.token_hex(4)}"

    @pytest.fixture
    def store(self, bucket: str, settings: S3Settings) -> Iterator[Store]:
        made = open_store(f"s3://{bucket}/some/where", settings, create=True)
        yield made
        made.close()

    @pytest.fixture
    def overwrite(self, bucket: str, rclone_client: Any) -> Callable[[str, bytes], None]:
        def write(key: str, data: bytes) -> None:
            rclone_client.put_object(Bucket=bucket, Key=f"some/where/{key}", Body=data)

        return write

    def test_probe(self, store: Store) -> None:
        """The one thing that it lacks is told."""
        found = store.probe()
        assert (found.put_if_absent, found.ranges, found.lists, found.deletes) == (False, True, True, True)
        assert list(store.list("")) == []

    def test_other_bytes_are_refused(self, store: Store) -> None:
        """They are not: the last one wins, silently. This is why such a place is refused by `init`."""
        store.put("a", b"one")
        store.put("a", b"two")
        assert store.get("a") == b"two"

    def test_of_racing_writers_one_wins(self) -> None:
        pytest.skip("rclone ignores If-None-Match: each racer wins")

    def test_a_writer_killed_at_any_moment_leaves_whole_objects_only(self) -> None:
        pytest.skip("rclone keeps what a killed writer had sent")

    def test_an_object_cut_short_is_truncated(self, store: Store, overwrite: Callable[[str, bytes], None]) -> None:
        """A cut object raises, in both ways of reading it."""
        store.put("a", bytes(10000))
        overwrite("a", bytes(9999))
        with pytest.raises(ObjectTruncated):
            store.get("a", 5000, 5000)
        with pytest.raises(ObjectTruncated):
            store.read_into("a", 5000, memoryview(bytearray(5000)))


@pytest.mark.torture
class TestCephWithVersions(_Remote):
    """The same in a bucket made for object lock, where Ceph ignores If-None-Match: the order of versions settles it."""

    LISTS = 20

    @pytest.fixture
    def bucket(self, client: Any) -> Iterator[str]:
        name = f"test-{secrets.token_hex(4)}"
        client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
        yield name
        remove_bucket(client, name)

    @pytest.fixture
    def settings(self, settings: S3Settings) -> S3Settings:
        return settings

    def test_an_object_cut_short_is_truncated(self, store: Store, overwrite: Callable[[str, bytes], None]) -> None:
        """It cannot be cut: what was put first is read, whatever is put over it."""
        store.put("a", bytes(10000))
        overwrite("a", bytes(9999))
        assert store.get("a", 5000, 5000) == bytes(5000)
        assert store.stat("a").size == 10000
        store.put("a", bytes(10000))
