"""What a bucket that keeps versions, and the keys to it, can do: found out on throw-away objects."""

import secrets
from collections.abc import Iterator
from dataclasses import replace

from vmbackup.storage_backends.base import BucketFacts, DeleteRefused
from vmbackup.storage_backends.s3_errors import answer_of, is_denied
from vmbackup.storage_backends.s3_requests import Requests
from vmbackup.storage_backends.s3_versions import Versions


def examine(
    requests: Requests, versions: Versions, facts: BucketFacts, prefix: str, *, powers: bool
) -> tuple[BucketFacts, bool]:
    """More facts of the bucket, and whether of several puts of one name the first is the first for good.

    Throw-away objects are put below `prefix`; what the keys may not delete stays there.
    """
    names = [prefix + secrets.token_hex(8) for _ in range(2)]
    try:
        conditional = _puts_once(requests, names[0])
        settled = conditional or versions.settles(names[1])
    finally:
        may = list(_powers(requests, versions, names, facts)) if powers else list(_tidy(versions, names))
    return replace(facts, conditional=conditional, powers=tuple(may)), settled


def _puts_once(requests: Requests, name: str) -> bool:
    """Whether the server itself refuses a second put."""
    put = requests.client.put_object
    try:
        for body in (b"1", b"2"):
            requests.repeated(
                lambda body=body: put(Bucket=requests.bucket, Key=name, Body=body, IfNoneMatch="*")  # type: ignore[misc]
            )
    except Exception as error:
        if answer_of(error).code in ("PreconditionFailed", "412"):
            return True
        raise
    return False


def _powers(requests: Requests, versions: Versions, names: list[str], facts: BucketFacts) -> Iterator[str]:
    """What the keys may do and only a pruner's or the owner's should; each try changes nothing."""
    yield from _tidy(versions, names)
    if facts.versioning and _may(requests, "put_bucket_versioning", VersioningConfiguration={"Status": "Enabled"}):
        yield "change the bucket's versioning"
    if "lifecycle rules" not in facts.unknown and not facts.rules and _may(requests, "delete_bucket_lifecycle"):
        yield "set rules that delete objects"


def _tidy(versions: Versions, names: list[str]) -> Iterator[str]:
    try:
        for name in names:
            versions.delete(name)
    except DeleteRefused:
        return
    yield "delete versions of objects"


def _may(requests: Requests, operation: str, **asked: object) -> bool:
    try:
        requests.ask(operation, **asked)
    except Exception as error:
        if is_denied(error) or answer_of(error).code in ("NotImplemented", "MethodNotAllowed"):
            return False
        raise
    return True
