"""Requests to one bucket: at most so many at a time, repeated while they fail for what may pass, errors in words."""

import base64
import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from vmbackup.storage_backends.base import StoreError
from vmbackup.storage_backends.s3_client import make_client
from vmbackup.storage_backends.s3_errors import answer_of, is_foreign, is_transient, told
from vmbackup.storage_backends.s3_retry import Patience, Trial
from vmbackup.storage_backends.s3_settings import S3Settings

T = TypeVar("T")
# Requests with a body of XML that servers want a Content-MD5 of; boto3 sends a crc32, which old ones do not know.
_WANT_MD5 = ("PutObjectRetention",)


class Requests:
    """boto3's client with the store's patience; shared by threads. `place`: "s3://b/p at https://host"."""

    def __init__(self, settings: S3Settings, bucket: str, place: str) -> None:
        self.bucket, self.place = bucket, place
        self.client = make_client(settings)
        for operation in _WANT_MD5:
            # Not before-call: boto3 would put its checksum in again.
            self.client.meta.events.register(f"before-sign.s3.{operation}", _use_md5)
        self._patience = Patience(settings.patience)
        self.slots = threading.BoundedSemaphore(settings.connections)
        self._ahead = time.time() - time.monotonic()

    def trial(self) -> Trial:
        """The tries of one request."""
        return self._patience.trial()

    def answered(self, error: BaseException | None = None) -> None:
        """Tell that the server has answered, be it by this error."""
        self._patience.answered |= error is None or bool(answer_of(error).status)

    def ask(self, operation: str, **asked: Any) -> Any:
        """The answer to a request about the bucket, by boto3's name for it. Raises what boto3 raises."""
        return self.repeated(lambda: getattr(self.client, operation)(Bucket=self.bucket, **asked))

    def repeated(self, request: Callable[[], T]) -> T:
        """The answer to a request, made again while it fails for what may pass. Raises what boto3 raises."""
        trial = self.trial()
        while True:
            try:
                with self.slots:
                    answer = request()
            except Exception as error:
                self.answered(error)
                if not (is_transient(error) and trial.wait()):
                    raise
            else:
                self.answered()
                self._hear(answer)
                return answer

    def now(self) -> float:
        """The server's clock, by its last answer: seconds since 1970."""
        return time.monotonic() + self._ahead

    def _hear(self, answer: Any) -> None:
        date = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
        if date:
            with contextlib.suppress(ValueError):
                self._ahead = parsedate_to_datetime(date).timestamp() - time.monotonic()

    @contextlib.contextmanager
    def translated(self, doing: str) -> Iterator[None]:
        """Errors of boto3 as those of a store. `doing`: "store data/x in"."""
        try:
            yield
        except StoreError:
            raise
        except Exception as error:
            if not is_foreign(error):
                raise
            raise told(error, doing, self.place, self.bucket) from error


def _use_md5(request: Any, **_: object) -> None:
    for name in list(request.headers):
        if name.lower().startswith(("x-amz-checksum-", "x-amz-sdk-checksum")):
            del request.headers[name]
    digest = hashlib.md5(request.body or b"", usedforsecurity=False).digest()
    del request.headers["Content-MD5"]
    request.headers["Content-MD5"] = base64.b64encode(digest).decode()
