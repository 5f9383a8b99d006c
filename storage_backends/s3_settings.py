"""What a bucket's store needs beside its URL: where the server is, how it is spoken to, with which keys."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from vmbackup.storage_backends.base import BadStoreUrl

DEFAULT_REGION = "us-east-1"  # what servers with no regions of their own take in a signature
DEFAULT_PATIENCE = 300.0  # seconds: an outage of minutes must not cost a backup of hours
DEFAULT_CONNECTIONS = 16  # four times the packs that a backup has on their way; a thread beyond them waits
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_SEGMENT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_AWS_REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-\d")
_URL_HINT = "write s3://bucket or s3://bucket/prefix"
_BY_HAND = "or set endpoint_url and region by hand"


@dataclass(frozen=True)
class S3Settings:
    """Where and how. `endpoint`: "https://HOST[:PORT]"; `ca_file`: certificates to trust instead of the system's.

    With no `access_key` boto3 looks where it always does (environment, ~/.aws, the machine's role).
    `connections` bounds the requests at a time; `patience` is for how many seconds of failures a request is
    repeated, once the server has answered at all.
    """

    endpoint: str
    region: str = DEFAULT_REGION
    addressing: str = "path"
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    connections: int = DEFAULT_CONNECTIONS
    patience: float = DEFAULT_PATIENCE


class BadProvider(ValueError):
    """A provider that is not known, or settings that do not suffice; `key` is the setting that is wrong."""

    def __init__(self, key: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.key = key
        self.message = message
        self.hint = hint


@dataclass(frozen=True)
class EgressPrice:
    """What reading costs at most: for 10^9 bytes that leave the provider."""

    per_gb: float
    currency: str

    def of(self, n_bytes: int) -> float:
        """The cost of reading so much, in the price's currency."""
        return n_bytes / 1e9 * self.per_gb


@dataclass(frozen=True)
class _Preset:
    """`endpoint` holds {place}, "" where the operator runs the server; `regions`: place -> region where they differ.

    `egress`: the price of what goes beyond any free quota, where the provider's own page was seen to tell it; else
    None: no price is better than a wrong one, and `egress_price` of the configuration tells it.
    """

    endpoint: str = ""
    places: Sequence[str] = ()
    regions: tuple[tuple[str, str], ...] = ()
    egress: EgressPrice | None = None


# Endpoints as the providers document them. Path style everywhere: it works with any certificate and any bucket.
_PRESETS = {
    "hetzner": _Preset(
        "https://{place}.your-objectstorage.com",
        ("fsn1", "nbg1", "hel1"),
        egress=EgressPrice(0.001, "EUR"),  # hetzner.com/storage/object-storage: additional outgoing traffic, a TB: 1.00
    ),
    "ovh": _Preset(
        "https://s3.{place}.io.cloud.ovh.net",
        ("gra", "rbx", "sbg", "de", "uk", "waw", "eu-west-par", "eu-south-mil"),
    ),
    "scaleway": _Preset("https://s3.{place}.scw.cloud", ("fr-par", "nl-ams", "pl-waw")),
    "ionos": _Preset(
        "https://s3.{place}.ionoscloud.com",
        ("eu-central-1", "eu-central-2", "eu-central-3", "eu-central-4", "eu-south-2"),
        (("eu-central-1", "de"),),
    ),
    "aws": _Preset("https://s3.{place}.amazonaws.com"),
    "minio": _Preset(),
    "ceph": _Preset(),
}
PROVIDERS = tuple(_PRESETS)


def egress_price(provider: str) -> EgressPrice | None:
    """What reading from a provider ("NAME:PLACE") costs; None where that is not known, or nobody's price."""
    preset = _PRESETS.get(provider.lower().partition(":")[0])
    return preset.egress if preset else None


@dataclass(frozen=True)
class Server:
    """A server's endpoint, its region and the style of its addresses."""

    endpoint: str
    region: str
    addressing: str


def find_server(
    provider: str | None, endpoint: str | None = None, region: str | None = None, addressing: str | None = None
) -> Server:
    """Where a provider's server is; what is given by hand holds. Raises BadProvider."""
    found, own_region = _preset(provider) if provider else ("", DEFAULT_REGION)
    if not endpoint and not found:
        if provider:
            raise BadProvider("provider", f'provider = "{provider}" has no address of its own', "add endpoint_url")
        raise BadProvider("url", "neither provider nor endpoint_url says where the bucket is", "add one of them")
    return Server((endpoint or found).rstrip("/"), region or own_region, addressing or "path")


def _preset(provider: str) -> tuple[str, str]:
    """Endpoint and region of "NAME:PLACE"; the endpoint is "" where the operator runs the server."""
    name, colon, place = provider.lower().partition(":")
    if name not in _PRESETS:
        hint = f"use one of {', '.join(PROVIDERS)}, or endpoint_url"
        raise BadProvider("provider", f'provider = "{provider}" is not a provider', hint)
    preset = _PRESETS[name]
    if not preset.endpoint:
        if colon:
            raise BadProvider(
                "provider", f'provider = "{provider}" takes no place', f'write "{name}", and endpoint_url'
            )
        return "", DEFAULT_REGION
    fits = place in preset.places if preset.places else _AWS_REGION.fullmatch(place) is not None
    if not fits:
        places = ", ".join(f"{name}:{known}" for known in preset.places) or f"{name}:REGION, like {name}:eu-central-1"
        wrong = "is no place of it" if place else "says no place"
        raise BadProvider("provider", f'provider = "{provider}" {wrong}', f"use {places}, {_BY_HAND}")
    return preset.endpoint.format(place=place), dict(preset.regions).get(place, place)


def bucket_and_prefix(url: str) -> tuple[str, str]:
    """The bucket of "s3://bucket/prefix", and the prefix with a slash at its end, "" for none. BadStoreUrl."""
    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    segments = prefix.rstrip("/").split("/") if prefix.rstrip("/") else []
    if scheme != "s3" or not _BUCKET.fullmatch(bucket) or ".." in bucket:
        raise BadStoreUrl(f"{url!r} names no bucket", _URL_HINT)
    if not all(_SEGMENT.fullmatch(segment) for segment in segments):
        raise BadStoreUrl(f"the prefix of {url!r} is not made of plain names", _URL_HINT)
    return bucket, "".join(f"{segment}/" for segment in segments)
