"""From an address to a store."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from vmbackup.storage_backends.base import BadStoreUrl, Store
from vmbackup.storage_backends.local import LocalStore
from vmbackup.storage_backends.s3_settings import S3Settings

_HINT = "give an absolute path, or file:///absolute/path"


def open_store(url: str, s3: S3Settings | None = None, *, create: bool = False, lockable: bool = False) -> Store:
    """Open the store at `file:///absolute/path`, at an absolute path, or at `s3://bucket/prefix` by its settings.

    With `create` a folder or bucket that is missing is made, a bucket for object lock if it is to be `lockable`;
    whether it may hold anything is the caller's question (see `occupants`). A bucket is not asked for anything before
    the first verb.
    Raises BadStoreUrl, StoreMissing, StoreUnavailable.
    """
    if not url.startswith("s3://"):
        return LocalStore(_folder(url), create=create)
    if s3 is None:
        raise BadStoreUrl(f"{url!r} does not say where its server is", "give settings beside it")
    from vmbackup.storage_backends.s3 import S3Store

    return S3Store(url, s3, create=create, lockable=lockable)


def _folder(url: str) -> Path:
    path = url if url.startswith("/") else _path_of(url)
    if "\0" in path or not path.startswith("/") or not path.strip("/"):
        raise BadStoreUrl(f"{url!r} is no folder below /", _HINT)
    return Path(path)


def _path_of(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise BadStoreUrl(f"{url!r} is no address of a store: {error}", _HINT) from None
    if parts.scheme not in ("", "file"):
        raise BadStoreUrl(f"{url!r} is of a kind that is not known: {parts.scheme}", _HINT)
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
        raise BadStoreUrl(f"{url!r} is no local folder", _HINT)
    return unquote(parts.path)
