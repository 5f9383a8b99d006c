"""boto3's client, set up for servers that are not Amazon's, and the body of a put."""

import functools
import os
from typing import Any

from vmbackup.storage_backends.base import StoreUnavailable
from vmbackup.storage_backends.s3_settings import S3Settings

# One more try at once, for a kept connection that the server has closed meanwhile. The rest is `Patience`'s: eight
# tries of 120 s each, as boto3 would make them, are 16 minutes on a server that hangs.
_ATTEMPTS = 2
_CONNECT_SECONDS, _READ_SECONDS = 10, 120
# What is handed to the socket at once. A send has the time limit of a connect, 10 s for all its bytes: in one piece
# a pack of 32 MiB would fail on a line of less than 27 Mbit/s, so it passes at 0.2.
_PIECE = 256 << 10


def make_client(settings: S3Settings) -> Any:
    """A client of boto3, to be shared by threads. Raises StoreUnavailable."""
    import boto3
    import botocore.session
    from botocore import exceptions
    from botocore.config import Config

    if settings.ca_file and not os.access(settings.ca_file, os.R_OK):
        raise StoreUnavailable(f"the ca_file {settings.ca_file} cannot be read", "correct ca_file, or its permissions")
    config = Config(
        signature_version="s3v4",
        # The payload is signed: some servers ignore every other checksum of it.
        s3={"addressing_style": settings.addressing, "payload_signing_enabled": True},
        # By default bodies go in chunks with a trailer, which Ceph and others refuse over https.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        max_pool_connections=settings.connections,
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        tcp_keepalive=True,
    )
    try:
        inner = botocore.session.Session()
        inner.register_component("data_loader", _loader())
        session = boto3.session.Session(
            botocore_session=inner,
            aws_access_key_id=settings.access_key,
            aws_secret_access_key=settings.secret_key,
            region_name=settings.region,
        )
        return session.client("s3", endpoint_url=settings.endpoint, config=config, verify=settings.ca_file or None)
    except (exceptions.BotoCoreError, ValueError) as error:
        raise StoreUnavailable(
            f"boto3 cannot be set up for {settings.endpoint}: {error}", "correct its settings"
        ) from error


@functools.cache
def _loader() -> Any:
    """What reads boto3's descriptions of services, and keeps them: two thirds of the time of a client."""
    from botocore.loaders import create_loader

    return create_loader()


class Body:
    """The bytes of a put as a file that is read in pieces which are views of them, never copies."""

    def __init__(self, view: memoryview) -> None:
        self._view, self._at = view, 0

    def __len__(self) -> int:
        return self._view.nbytes

    def read(self, size: int = -1) -> memoryview:  # noqa: ARG002  whoever reads takes what comes, down to nothing
        """The next piece; empty at the end."""
        piece = self._view[self._at : self._at + _PIECE]
        self._at += piece.nbytes
        return piece

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As files do."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: len(self)}[whence]
        return self._at

    def tell(self) -> int:
        """As files do."""
        return self._at
