"""Buckets of real servers, and stores in them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.lab.ceph import USERS, Ceph, CephError, plain_client
from tests.lab.fault_proxy import FaultProxy
from tests.lab.rclone import KEYS, Rclone
from vmbackup.storage_backends import S3Settings, Store, open_store


@pytest.fixture(autouse=True)
def no_long_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures are repeated as often as ever, and sooner."""
    monkeypatch.setattr("vmbackup.storage_backends.s3_retry._FIRST_DELAY", 0.02)


@pytest.fixture(scope="session")
def rclone() -> Iterator[Rclone]:
    try:
        running = Rclone().__enter__()
    except CephError as error:
        pytest.skip(str(error))
    yield running
    running.__exit__()


@pytest.fixture(scope="session")
def client(ceph: Ceph) -> Iterator[Any]:
    """boto3's own client to Ceph."""
    made = ceph.client()
    yield made
    made.close()


@pytest.fixture(scope="session")
def bucket(client: Any) -> str:
    """A bucket of Ceph's for the whole run."""
    client.create_bucket(Bucket="shared")
    return "shared"


@pytest.fixture
def prefix() -> str:
    """Where in the bucket a test has its objects."""
    return f"test/{secrets.token_hex(4)}"


@pytest.fixture
def settings(ceph: Ceph) -> S3Settings:
    return S3Settings(ceph.http, access_key=USERS["vmbackup"][0], secret_key=USERS["vmbackup"][1])


@pytest.fixture
def proxy(ceph: Ceph) -> Iterator[FaultProxy]:
    with FaultProxy(ceph.http) as running:
        yield running


@pytest.fixture
def make_store(bucket: str, prefix: str, settings: S3Settings) -> Iterator[Callable[..., Store]]:
    """Opens stores in the test's place (`make_store(settings)`), or in another bucket; closed with the test."""
    made: list[Store] = []

    def make(other: S3Settings | None = None, url: str = "") -> Store:
        made.append(open_store(url or f"s3://{bucket}/{prefix}", other or settings))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def store(make_store: Callable[..., Store], settings: S3Settings) -> Store:
    return make_store(settings)


@pytest.fixture
def overwrite(client: Any, bucket: str, prefix: str) -> Callable[[str, bytes], None]:
    def write(key: str, data: bytes) -> None:
        client.put_object(Bucket=bucket, Key=f"{prefix}/{key}", Body=data)

    return write


@pytest.fixture
def rclone_client(rclone: Rclone) -> Iterator[Any]:
    made = plain_client(rclone.http, *KEYS)
    yield made
    made.close()
