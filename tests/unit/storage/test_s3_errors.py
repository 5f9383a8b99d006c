"""What servers and networks answer is told in a sentence with a hint, and repeated only where that may help."""

from typing import Any

import pytest
from botocore import exceptions
from botocore.exceptions import ClientError

from vmbackup.storage_backends import StoreFull, StoreMissing, StoreUnavailable
from vmbackup.storage_backends.base import StoreUnfit
from vmbackup.storage_backends.s3_bucket import expiring, look_at
from vmbackup.storage_backends.s3_errors import is_transient, told

PLACE = "s3://bucket/prefix at https://s3.example.org"


def _answer(code: str, status: int, said: str = "") -> ClientError:
    document: Any = {"Error": {"Code": code, "Message": said}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(document, "PutObject")


ANSWERS = [
    ("NoSuchBucket", 404, StoreMissing, "there is no bucket bucket at https://s3.example.org", False),
    ("InvalidAccessKeyId", 403, StoreUnavailable, "https://s3.example.org does not know this access key", False),
    ("SignatureDoesNotMatch", 403, StoreUnavailable, "the secret key does not fit the access key", False),
    ("RequestTimeTooSkewed", 403, StoreUnavailable, "the clocks of this machine and of", False),
    ("AccessDenied", 403, StoreUnavailable, "the access key may not store x in s3://bucket/prefix at", False),
    ("403", 403, StoreUnavailable, "the access key may not store x in", False),
    ("AuthorizationHeaderMalformed", 400, StoreUnavailable, "not of the region or server", False),
    ("PermanentRedirect", 301, StoreUnavailable, "not of the region or server", False),
    ("QuotaExceeded", 403, StoreFull, "no space or quota is left", False),
    ("XMinioStorageFull", 507, StoreFull, "no space or quota is left", True),
    ("SlowDown", 503, StoreUnavailable, "the server asks to slow down", True),
    ("429", 429, StoreUnavailable, "the server asks to slow down", True),
    ("InternalError", 500, StoreUnavailable, "the server fails (InternalError)", True),
    ("502", 502, StoreUnavailable, "the server fails (502)", True),
    ("NotImplemented", 501, StoreUnavailable, "the server refuses it (NotImplemented)", False),
    ("BadDigest", 400, StoreUnavailable, "the server refuses it (BadDigest)", True),
    ("ConditionalRequestConflict", 409, StoreUnavailable, "the server refuses it", True),
    ("InvalidObjectState", 403, StoreUnavailable, "has moved the object to an archive", False),
    ("SomethingNew", 400, StoreUnavailable, "the server refuses it (SomethingNew)", False),
]


@pytest.mark.parametrize(("code", "status", "kind", "message", "transient"), ANSWERS)
def test_answers(code: str, status: int, kind: type, message: str, transient: bool) -> None:
    error = _answer(code, status)
    found = told(error, "store x in", PLACE, "bucket")
    assert type(found) is kind
    assert message in found.message
    assert found.hint or code in ("NotImplemented", "BadDigest", "ConditionalRequestConflict", "SomethingNew")
    assert is_transient(error) is transient


def test_the_servers_own_words_are_kept_where_ours_lack() -> None:
    found = told(_answer("Odd", 400, "the moon is full"), "list", PLACE, "bucket")
    assert found.message == f"cannot list {PLACE}: the server refuses it (Odd: the moon is full)"


SILENCES: list[tuple[Exception, str, bool]] = [
    (exceptions.EndpointConnectionError(endpoint_url="x", error=OSError(111, "Connection refused")),
     "Connection refused", True),
    (exceptions.ConnectTimeoutError(endpoint_url="x"), "no connection within the time limit", True),
    (exceptions.ReadTimeoutError(endpoint_url="x"), "no answer within the time limit", True),
    (exceptions.ConnectionClosedError(endpoint_url="x"), "closed without an answer", True),
    (exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2), "the answer was cut off", True),
    (exceptions.NoCredentialsError(), "no access key for https://s3.example.org is known", False),
    (exceptions.SSLError(endpoint_url="x", error="[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: "
                         "self-signed certificate (_ssl.c:1006)"), "is not trusted: self-signed certificate", False),
    (exceptions.SSLError(endpoint_url="x", error="[SSL: WRONG_VERSION_NUMBER] wrong version number"),
     "speaks no TLS", False),
    (exceptions.SSLError(endpoint_url="x", error="EOF occurred in violation of protocol"), "no TLS connection", True),
    (ConnectionResetError(104, "Connection reset by peer"), "Connection reset by peer", True),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "transient"), SILENCES)
def test_silences(error: Exception, message: str, transient: bool) -> None:
    found = told(error, "list", PLACE, "bucket")
    assert type(found) is StoreUnavailable
    assert message in found.message
    assert found.hint
    assert is_transient(error) is transient


RULES = [
    ({"Expiration": {"Days": 30}}, True),
    ({"Expiration": {"Date": "2027-01-01"}, "Filter": {"Prefix": ""}}, True),
    ({"Expiration": {"Days": 30}, "Filter": {"Prefix": "backups/"}}, True),
    ({"Expiration": {"Days": 30}, "Filter": {"Prefix": "backups/vm/data/"}}, True),
    ({"Expiration": {"Days": 30}, "Prefix": "back"}, True),
    ({"Expiration": {"Days": 30}, "Filter": {"And": {"Prefix": "backups/", "ObjectSizeGreaterThan": 5}}}, True),
    ({"Expiration": {"Days": 30}, "Filter": {"Prefix": "photos/"}}, False),
    ({"Expiration": {"Days": 30}, "Filter": {"Tag": {"Key": "a", "Value": "b"}}}, False),
    ({"Expiration": {"ExpiredObjectDeleteMarker": True}}, False),
    ({"NoncurrentVersionExpiration": {"NoncurrentDays": 1}}, False),
    ({"AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1}}, False),
    ({"Expiration": {"Days": 30}, "Status": "Disabled"}, False),
]


@pytest.mark.parametrize(("rule", "deletes"), RULES)
def test_rules_that_delete_what_is_ours(rule: dict[str, Any], deletes: bool) -> None:
    rules = {"Rules": [{"Status": "Enabled", "ID": "tidy"} | rule]}
    assert list(expiring(rules, "backups/vm/")) == (["'tidy'"] if deletes else [])


def test_settings_that_may_not_be_asked_for_are_unknown() -> None:
    def ask(operation: str, **_: Any) -> Any:
        raise _answer("AccessDenied" if "lifecycle" in operation else "NotImplemented", 403)

    facts = look_at(ask, "bucket", "")
    assert (facts.versioning, facts.object_lock) == (None, None)
    assert facts.unknown == ("versioning", "object lock", "lifecycle rules")


def test_a_default_retention_is_refused() -> None:
    lock = {"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 7}}}

    def ask(operation: str, **_: Any) -> Any:
        return {"ObjectLockConfiguration": lock} if "lock" in operation else {}

    with pytest.raises(StoreUnfit, match=r"locks each new object for 7 days \(COMPLIANCE\)"):
        look_at(ask, "bucket", "")
