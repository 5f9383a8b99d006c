"""What an S3 server or the way to it answered, as errors of a store: a sentence, a hint, and whether to repeat."""

from typing import Any, NamedTuple

from vmbackup.storage_backends.base import StoreError, StoreFull, StoreMissing, StoreUnavailable

_TRANSIENT = {  # codes of answers that the next try may not meet
    "SlowDown", "ServiceUnavailable", "InternalError", "InternalFailure", "RequestTimeout", "OperationAborted",
    "ConditionalRequestConflict", "ConcurrentModification", "TooManyRequests", "Throttling", "ThrottlingException",
    "RequestLimitExceeded", "BandwidthLimitExceeded", "RequestThrottled", "TooManyRequestsException",
    # what was sent arrived otherwise: the same bytes are sent again
    "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch", "InvalidDigest",
}  # fmt: skip
_FULL = {"QuotaExceeded", "InsufficientCapacity", "InsufficientStorage", "StorageFull", "XMinioStorageFull", "507"}
_MISSING_KEY = {"NoSuchKey", "404", "NotFound"}
_DENIED = {"AccessDenied", "403", "Forbidden", "AllAccessDisabled", "AccountProblem"}
_WRONG_REGION = {"AuthorizationHeaderMalformed", "PermanentRedirect", "TemporaryRedirect", "301", "307"}
_CLOCK = "timedatectl set-ntp true; the server allows 15 minutes"
_KEYS = "check access_key_file and secret_key_file of this repository"


class Answer(NamedTuple):
    """An error that the server answered: its code ("" where none was), HTTP status (0) and own words."""

    code: str
    status: int
    said: str


def answer_of(error: BaseException) -> Answer:
    """What the server said; an empty answer where it gave none."""
    response: Any = getattr(error, "response", None)
    if not isinstance(response, dict):
        return Answer("", 0, "")
    told = response.get("Error") or {}
    status = (response.get("ResponseMetadata") or {}).get("HTTPStatusCode") or 0
    return Answer(str(told.get("Code") or status or ""), int(status), str(told.get("Message") or ""))


def is_missing_key(error: BaseException) -> bool:
    """Whether the answer is that there is no such object; to a HEAD a missing bucket gives the same."""
    return answer_of(error).code in _MISSING_KEY


def is_denied(error: BaseException) -> bool:
    """Whether the keys may not do this; also the answer for a missing object to who may not list."""
    return answer_of(error).code in _DENIED


def is_bodiless(error: BaseException) -> bool:
    """Whether the answer is of a HEAD, which says nothing but its status."""
    return answer_of(error).code.isdecimal()


def is_foreign(error: BaseException) -> bool:
    """Whether it comes from boto3 or the network, and not from a mistake of ours."""
    from botocore import exceptions

    return isinstance(error, (exceptions.ClientError, exceptions.BotoCoreError, OSError))


def is_transient(error: BaseException) -> bool:
    """Whether the same request may be answered otherwise in a while."""
    from botocore import exceptions

    answer = answer_of(error)
    if answer.status:
        return answer.code in _TRANSIENT or answer.status == 429 or (answer.status >= 500 and answer.status != 501)
    if isinstance(error, exceptions.SSLError):
        return not _is_trust(error)
    connection = (exceptions.ConnectionError, exceptions.HTTPClientError, exceptions.IncompleteReadError)
    return isinstance(error, (*connection, OSError))


def told(error: BaseException, doing: str, place: str, bucket: str) -> StoreError:
    """The error of a store for what boto3 raised. `doing`: "store data/x in"; `place`: "s3://b/p at https://host"."""
    from botocore import exceptions

    answer = answer_of(error)
    if answer.status:
        return _answered(answer, doing, place, bucket)
    server = place.rpartition(" at ")[2]
    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        message = f"no access key for {server} is known"
        return StoreUnavailable(message, "set access_key_file and secret_key_file")
    if isinstance(error, exceptions.SSLError):
        return _no_tls(error, server)
    if isinstance(error, exceptions.ConnectionError | exceptions.HTTPClientError | OSError):
        hint = "check endpoint_url, the network and the name's address; a proxy is taken from the environment"
        if isinstance(error, exceptions.ConnectionClosedError) and server.startswith("http://"):
            secure = f"https://{server.removeprefix('http://')}"
            hint = f"if the server speaks TLS alone, endpoint_url is {secure}; else {hint}"
        return StoreUnavailable(f"cannot {doing} {place}: {_reason(error)}", hint)
    if isinstance(error, exceptions.IncompleteReadError):
        return StoreUnavailable(f"cannot {doing} {place}: the answer was cut off", "check the network")
    return StoreUnavailable(f"cannot {doing} {place}: {error}", "")


def _answered(answer: Answer, doing: str, place: str, bucket: str) -> StoreError:
    server = place.rpartition(" at ")[2]
    code = answer.code
    if code == "NoSuchBucket":
        hint = "correct url, provider or endpoint_url; 'vmbackup init --create-bucket' makes the bucket"
        return StoreMissing(f"there is no bucket {bucket} at {server}", hint)
    if code in _FULL:
        return StoreFull(f"cannot {doing} {place}: no space or quota is left ({code})", "raise the quota, or prune")
    if code in _SENTENCES:
        sentence, hint = _SENTENCES[code]
        return StoreUnavailable(sentence.format(server=server), hint)
    if code in _DENIED:
        hint = "allow this access key to list, get, put and delete there, or use another one"
        return StoreUnavailable(f"the access key may not {doing} {place}", hint)
    if code in _WRONG_REGION:
        said = f": {answer.said}" if answer.said else ""
        return StoreUnavailable(f"bucket {bucket} is not of the region or server that was asked{said}", _REGION)
    if code == "SlowDown" or answer.status in (429, 503):
        hint = "run fewer backups at a time, or ask the provider for a higher rate"
        return StoreUnavailable(f"cannot {doing} {place}: the server asks to slow down ({code})", hint)
    if answer.status >= 500 and answer.status != 501:
        return StoreUnavailable(f"cannot {doing} {place}: the server fails ({code})", "try again later")
    words = f"{code}: {answer.said}" if answer.said else f"{code or answer.status}"
    return StoreUnavailable(f"cannot {doing} {place}: the server refuses it ({words})", "")


_REGION = "correct provider, or endpoint_url and region"
_SENTENCES = {
    "InvalidAccessKeyId": ("{server} does not know this access key", _KEYS),
    "SignatureDoesNotMatch": ("the secret key does not fit the access key, says {server}", f"{_KEYS}, and region"),
    "RequestTimeTooSkewed": ("the clocks of this machine and of {server} are too far apart", _CLOCK),
    "RequestExpired": ("the clocks of this machine and of {server} are too far apart", _CLOCK),
    "ExpiredToken": ("the access key has expired, says {server}", _KEYS),
    "InvalidToken": ("{server} does not know this access key", _KEYS),
    "InvalidRegion": ("{server} is of another region", _REGION),
    "InvalidLocationConstraint": ("{server} makes no bucket in this region", _REGION),
    "BucketAlreadyExists": ("the bucket belongs to somebody else at {server}", "choose another name"),
    "InvalidBucketName": ("{server} takes no bucket of this name", "choose another name"),
    "PreconditionFailed": ("an object at {server} was replaced while it was read", "look who else writes there"),
    "InvalidObjectState": ("{server} has moved the object to an archive", "bring it back, and remove the rule"),
}


def _is_trust(error: BaseException) -> bool:
    text = str(error)
    return any(word in text for word in ("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER", "No such file"))


def _no_tls(error: BaseException, server: str) -> StoreError:
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        why = text.partition("certificate verify failed: ")[2].rpartition(" (_ssl")[0] or "not verified"
        hint = "set ca_file to the certificate of its authority, or correct endpoint_url"
        return StoreUnavailable(f"the certificate of {server} is not trusted: {why}", hint)
    if "WRONG_VERSION_NUMBER" in text:
        return StoreUnavailable(f"{server} speaks no TLS", "correct endpoint_url: http:// or another port")
    return StoreUnavailable(f"no TLS connection to {server}: {text.partition('[')[2] or text}", "check ca_file")


def _reason(error: BaseException) -> str:
    """The cause below boto3's wrapping, in the operating system's words if there are any."""
    inner: BaseException | None = error
    for _ in range(8):  # the wrapping is four deep
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        kwargs = getattr(inner, "kwargs", None)
        wrapped = kwargs.get("error") if isinstance(kwargs, dict) else None
        following = wrapped if isinstance(wrapped, BaseException) else None
        following = following or getattr(inner, "reason", None) or (inner.__cause__ if inner else None)
        if not isinstance(following, BaseException):
            break
        inner = following
    return _PLAIN.get(type(error).__name__, str(error))


_PLAIN = {
    "ConnectTimeoutError": "no connection within the time limit",
    "ReadTimeoutError": "no answer within the time limit",
    "ConnectionClosedError": "the connection was closed without an answer",
    "EndpointConnectionError": "no connection",
    "ResponseStreamingError": "the connection was cut within the answer",
    "ProxyConnectionError": "the proxy cannot be reached",
}
