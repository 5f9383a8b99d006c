"""Checks of `doctor` on a store: what it does, what is set for its bucket, what the access key may do, its clock."""

import shlex
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vmbackup.config.units import GIB, format_duration, format_size
from vmbackup.hypervisor import Check

if TYPE_CHECKING:
    from vmbackup.cli.findings import Change
    from vmbackup.storage_backends import BucketFacts, ProbeResult

_LOW_SPACE = GIB  # of a repository: a full one fails the next run, some of it is needed to see that in time
_SKEW_SECONDS = 60.0  # of the store's clock to ours: times of objects are compared with it when dead runs are judged
_OLDEST_SANE = datetime(2024, 1, 1, tzinfo=UTC)  # a clock before it was never set
_WORDS = {True: "on", False: "off", None: "not told"}


def store_checks(name: str, url: str, probe: "ProbeResult", changes: Sequence["Change"]) -> Iterator[Check]:
    """What `doctor` says of the store of repository `name`."""
    yield _store_check(name, url, probe)
    for change in changes:
        fix = f"find out who changed it; if it was meant: rm {shlex.quote(str(change.file))}"
        yield Check("store", name, "warn", f"{url} {change.what}", fix)
    if probe.bucket is not None:
        yield _bucket_check(name, probe.bucket)
        if probe.bucket.versioning:
            yield _key_check(name, probe.bucket)
    yield _clock_check(name, probe)


def bucket_words(facts: "BucketFacts") -> str:
    """What is set for a bucket."""
    settled = "" if facts.conditional else ", the order of versions tells which put was the first"
    return f"versions: {_WORDS[facts.versioning]}, object lock: {_WORDS[facts.object_lock]}{settled}"


def lock_check(name: str, days: int, probe: "ProbeResult") -> Check:
    """Whether the promise of `init --object-lock` can be kept."""
    if probe.bucket is None or not probe.bucket.object_lock:
        fix = "bring the repository to a bucket with object lock"
        return Check("object-lock", name, "fail", f"objects are to be locked for {days} days, which it cannot do", fix)
    return Check("object-lock", name, "ok", f"what restore points need is locked for {days} days at least")


def _store_check(name: str, url: str, probe: "ProbeResult") -> Check:
    for lack in probe.lacks:
        return Check("store", name, "fail", f"{url} {lack}", "use another file system or provider")
    if probe.free_bytes is None:
        return Check("store", name, "ok", url)
    free = f"{url}, {format_size(probe.free_bytes)} free"
    if probe.free_bytes < _LOW_SPACE:
        return Check("store", name, "warn", free, f"df -h {url.removeprefix('file://')}")
    return Check("store", name, "ok", free)


def _bucket_check(name: str, facts: "BucketFacts") -> Check:
    """What is set for the bucket, as far as the keys may ask; what is wrong with it was a failure before."""
    told = bucket_words(facts)
    if "lifecycle rules" in facts.unknown:
        fix = "allow the access key s3:GetLifecycleConfiguration, or look yourself"
        message = f"{told}; it does not tell its lifecycle rules: one that expires objects would destroy restore points"
        return Check("bucket", name, "warn", message, fix)
    return Check("bucket", name, "ok", f"{told}, no rule that expires objects")


def _key_check(name: str, facts: "BucketFacts") -> Check:
    """Whether who steals this host's access key could do more harm than he must."""
    if not facts.powers:
        return Check("access-key", name, "ok", "cannot delete versions, nor change the bucket")
    message = f"the access key may {', '.join(facts.powers)}: so could who steals it from this host"
    fix = "give this host an access key of its own, and keep this one for prunes (docs/operations.md, section 13)"
    return Check("access-key", name, "warn", message, fix)


def _clock_check(name: str, probe: "ProbeResult") -> Check:
    now = datetime.now(UTC)
    if now < _OLDEST_SANE:
        return Check("clock", name, "fail", f"this machine says it is {now:%Y-%m-%d}", "timedatectl set-ntp true")
    skew = abs(probe.clock_skew)
    if skew > _SKEW_SECONDS:
        side = "ahead of" if probe.clock_skew > 0 else "behind"
        message = f"the store's clock is {format_duration(skew)} {side} ours"
        return Check("clock", name, "warn", message, "timedatectl set-ntp true")
    return Check("clock", name, "ok", "the store's clock agrees with ours")
