"""What a repository's store needs beside its url, out of the configuration and its files."""

from pathlib import Path

from vmbackup.config.models import Repository
from vmbackup.config.secrets import credential, read_key_file
from vmbackup.errors import ConfigError
from vmbackup.storage_backends.s3_settings import BadProvider, EgressPrice, S3Settings, egress_price, find_server


def s3_settings(repository: Repository) -> S3Settings | None:
    """The settings of a repository in a bucket, its keys read from their files; None for another.

    Raises ConfigError, and AccessError where a file of a key cannot be read.
    """
    if not repository.url.startswith("s3://"):
        return None
    try:
        server = find_server(
            repository.provider, repository.endpoint_url, repository.region, repository.addressing_style
        )
    except BadProvider as error:
        raise ConfigError(error.message, error.hint) from None
    return S3Settings(
        server.endpoint,
        server.region,
        server.addressing,
        _key(repository.access_key_file, repository.access_key_credential, "access key"),
        _key(repository.secret_key_file, repository.secret_key_credential, "secret key"),
        str(repository.ca_file) if repository.ca_file else None,
    )


def egress_price_of(repository: Repository) -> EgressPrice | None:
    """What reading it costs, as the configuration or else its provider's list says; None where neither tells."""
    if repository.egress_price is not None:
        amount, currency = repository.egress_price
        return EgressPrice(amount, currency)
    return egress_price(repository.provider) if repository.provider else None


def _key(file: Path | None, name: str | None, what: str) -> str | None:
    path = credential(name) if name is not None else file
    return read_key_file(path, what) if path is not None else None
