"""What a bucket does by itself: versions, locks and rules that delete."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vmbackup.storage_backends.base import BucketFacts, StoreUnfit
from vmbackup.storage_backends.s3_errors import answer_of

Ask = Callable[..., Any]
"""A request about the bucket by boto3's name for it, with its parameters; repeated as the store's others are."""

_NOTHING_SET = {"ObjectLockConfigurationNotFoundError", "NoSuchLifecycleConfiguration", "NoSuchObjectLockConfiguration"}
_NOT_TOLD = {"AccessDenied", "NotImplemented", "MethodNotAllowed", "403", "405", "501", "InvalidRequest"}


def versioning(ask: Ask) -> bool:
    """Whether the bucket keeps versions, or has kept some; taken for no where the keys may not ask."""
    return (_setting(ask, "get_bucket_versioning") or {}).get("Status") in ("Enabled", "Suspended")


def look_at(ask: Ask, bucket: str, prefix: str) -> BucketFacts:
    """What is set for a bucket. StoreUnfit where it locks or deletes what is put under `prefix`."""
    versions = _setting(ask, "get_bucket_versioning")
    lock = _setting(ask, "get_object_lock_configuration")
    rules = _setting(ask, "get_bucket_lifecycle_configuration")
    keeps = (versions or {}).get("Status") in ("Enabled", "Suspended")
    for rule in expiring(rules or {}, prefix, versions=keeps):
        hint = f"remove the rule from bucket {bucket}, or use a bucket of its own: forget and prune delete what is due"
        raise StoreUnfit(f"bucket {bucket} deletes objects by itself, by its lifecycle rule {rule}", hint)
    configured = (lock or {}).get("ObjectLockConfiguration", {})
    if retention := (configured.get("Rule") or {}).get("DefaultRetention"):
        span = f"{retention.get('Days') or retention.get('Years')} {'days' if retention.get('Days') else 'years'}"
        hint = f"remove the default retention of bucket {bucket}: it would lock what only lives while a backup runs"
        raise StoreUnfit(f"bucket {bucket} locks each new object for {span} ({retention.get('Mode')})", hint)
    asked = {"versioning": versions, "object lock": lock, "lifecycle rules": rules}
    return BucketFacts(
        versioning=None if versions is None else versions.get("Status") == "Enabled",
        object_lock=None if lock is None else configured.get("ObjectLockEnabled") == "Enabled",
        rules=bool((rules or {}).get("Rules")),
        unknown=tuple(name for name, answer in asked.items() if answer is None),
    )


def expiring(rules: Mapping[str, Any], prefix: str, *, versions: bool = False) -> Iterator[str]:
    """The names of the rules that delete objects below `prefix`.

    Where there are `versions`, also those that delete old ones: it is the oldest that holds, and whoever may put can
    make it an old one.
    """
    for number, rule in enumerate(rules.get("Rules", ()), 1):
        expiration = rule.get("Expiration") or {}
        deletes = "Days" in expiration or "Date" in expiration
        deletes |= versions and bool(rule.get("NoncurrentVersionExpiration"))
        if rule.get("Status") == "Enabled" and deletes and _concerns(rule, prefix):
            yield f"'{rule.get('ID') or number}'"


def _concerns(rule: Mapping[str, Any], prefix: str) -> bool:
    """Whether a rule's filter takes in what lies below `prefix`. Our objects have no tags."""
    chosen = rule.get("Filter") or {}
    both = chosen.get("And") or {}
    if chosen.get("Tag") or both.get("Tags"):
        return False
    start = chosen.get("Prefix") or both.get("Prefix") or rule.get("Prefix") or ""
    return bool(start.startswith(prefix) or prefix.startswith(start))


def _setting(ask: Ask, name: str) -> Mapping[str, Any] | None:
    """The answer to a question about the bucket, {} where nothing is set, None where it may not be asked."""
    try:
        answer: Mapping[str, Any] = ask(name)
    except Exception as error:
        code = answer_of(error).code
        if code in _NOTHING_SET:
            return {}
        if code in _NOT_TOLD:
            return None
        raise
    return answer


def create_bucket(ask: Ask, region: str, *, amazon: bool, lockable: bool) -> None:
    """Make the bucket, with object lock if it is to be `lockable`; none is made where it is ours already."""
    # Amazon's servers want to hear the region they are of, unless it is the oldest one; others take it amiss.
    how: dict[str, Any] = {"ObjectLockEnabledForBucket": True} if lockable else {}
    if amazon and region != "us-east-1":
        how["CreateBucketConfiguration"] = {"LocationConstraint": region}
    try:
        ask("create_bucket", **how)
    except Exception as error:
        if answer_of(error).code == "BucketAlreadyOwnedByYou":
            return
        if answer_of(error).code == "BucketAlreadyExists":  # some say so of our own, too
            try:
                ask("list_objects_v2", MaxKeys=1)
                return
            except Exception:
                raise error from None
        raise
