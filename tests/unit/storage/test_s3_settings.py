"""Where a bucket's server is: presets, what is said by hand, and addresses that cannot be meant."""

import pytest

from vmbackup.storage_backends import BadStoreUrl, S3Settings, open_store
from vmbackup.storage_backends.s3_settings import PROVIDERS, BadProvider, Server, bucket_and_prefix, find_server

KNOWN = {
    "hetzner:fsn1": ("https://fsn1.your-objectstorage.com", "fsn1"),
    "ovh:gra": ("https://s3.gra.io.cloud.ovh.net", "gra"),
    "ovh:GRA": ("https://s3.gra.io.cloud.ovh.net", "gra"),
    "scaleway:nl-ams": ("https://s3.nl-ams.scw.cloud", "nl-ams"),
    "ionos:eu-central-1": ("https://s3.eu-central-1.ionoscloud.com", "de"),
    "ionos:eu-central-3": ("https://s3.eu-central-3.ionoscloud.com", "eu-central-3"),
    "aws:eu-central-1": ("https://s3.eu-central-1.amazonaws.com", "eu-central-1"),
}


@pytest.mark.parametrize("provider", KNOWN)
def test_a_provider_and_place_fill_endpoint_and_region(provider: str) -> None:
    assert find_server(provider) == Server(*KNOWN[provider], "path")


@pytest.mark.parametrize("provider", ["minio", "ceph", None])
def test_ones_own_server(provider: str | None) -> None:
    assert find_server(provider, "https://s3.example.org:9000/") == Server(
        "https://s3.example.org:9000", "us-east-1", "path"
    )


def test_what_is_said_by_hand_holds() -> None:
    assert find_server("hetzner:fsn1", "https://x", "y", "virtual") == Server("https://x", "y", "virtual")


def test_every_provider_is_known() -> None:
    assert set(PROVIDERS) == {"hetzner", "ovh", "scaleway", "ionos", "aws", "minio", "ceph"}


@pytest.mark.parametrize(
    ("provider", "key"),
    [(None, "url"), ("ceph", "provider"), ("azure:x", "provider"), ("hetzner", "provider"), ("hetzner:", "provider"),
     ("hetzner:mars", "provider"), ("aws:mars", "provider"), ("minio:x", "provider"), ("", "url")],
)  # fmt: skip
def test_what_does_not_say_where(provider: str | None, key: str) -> None:
    with pytest.raises(BadProvider) as caught:
        find_server(provider)
    assert caught.value.key == key
    assert caught.value.hint


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("s3://bucket", ("bucket", "")),
        ("s3://bucket/", ("bucket", "")),
        ("s3://my.bucket-1/a/B_c.d/", ("my.bucket-1", "a/B_c.d/")),
    ],
)
def test_bucket_and_prefix(url: str, parts: tuple[str, str]) -> None:
    assert bucket_and_prefix(url) == parts


@pytest.mark.parametrize(
    "url",
    ["s3://", "s3:///a", "s3://ab", "s3://Bucket", "s3://bu..cket", "s3://-bucket", "s3://key@bucket", "s3://bucket//a",
     "s3://bucket/../a", "s3://bucket/a?b", "s3://bucket/a b", "s3://bucket/a%2Fb", "s3://bucket/.a", "http://bucket"],
)  # fmt: skip
def test_addresses_that_cannot_be_meant(url: str) -> None:
    with pytest.raises(BadStoreUrl) as caught:
        bucket_and_prefix(url)
    assert caught.value.hint


def test_without_settings_no_bucket_is_opened() -> None:
    with pytest.raises(BadStoreUrl, match="where its server is"):
        open_store("s3://bucket/prefix")


def test_a_secret_is_never_shown() -> None:
    assert "hush" not in repr(S3Settings("https://x", access_key="AK", secret_key="hush"))
