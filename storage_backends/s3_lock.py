"""Object lock: a version that nobody can delete for a time, whatever key he has."""

import math
from datetime import UTC, datetime

from vmbackup.storage_backends.base import StoreUnavailable, StoreUnfit
from vmbackup.storage_backends.s3_errors import answer_of, is_denied
from vmbackup.storage_backends.s3_requests import Requests
from vmbackup.storage_backends.s3_versions import Versions

# Nobody can shorten it, not the owner of the bucket, whose key is the one that a stolen machine often has. GOVERNANCE
# can be lifted by whoever may bypass it, and on many servers that is each key of the project.
MODE = "COMPLIANCE"
_SLACK = 2.0  # seconds that pass between the lock and the reading back of it, and rounding
_NO_LOCK = {"InvalidRequest", "NotImplemented", "MethodNotAllowed", "InvalidBucketState"}
_HINT = "a bucket is made for object lock: name a new one, and 'vmbackup init --object-lock DAYS --create-bucket'"


def no_lock(bucket: str) -> StoreUnfit:
    """What is said of a bucket that was not made for object lock."""
    return StoreUnfit(f"bucket {bucket} locks nothing", _HINT)


def lock_version(requests: Requests, versions: Versions, name: str, version_id: str, seconds: float) -> float:
    """Lock a version for so long from now at least, and read it back; gives until when it is locked.

    Raises StoreUnfit, StoreUnavailable, or what boto3 raises.
    """
    until = math.ceil(requests.now() + seconds) + 1  # the server tells its time without fractions
    date = datetime.fromtimestamp(until, UTC)
    refusal: Exception | None = None
    try:
        requests.ask(
            "put_object_retention", Key=name, VersionId=version_id, Retention={"Mode": MODE, "RetainUntilDate": date}
        )
    except Exception as error:
        if answer_of(error).code in _NO_LOCK:
            raise no_lock(requests.bucket) from error
        if not is_denied(error):
            raise
        refusal = error  # an attempt to shorten a longer lock is denied too
    found = versions.locked_until(name, version_id)
    if found is not None and found >= requests.now() + seconds - _SLACK:
        return found
    if refusal:
        raise refusal
    message = f"{requests.place} says that it locked {name}, and did not"
    raise StoreUnavailable(message, "use another provider, or a repository without object lock")
