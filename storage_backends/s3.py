"""A store in a bucket of an S3 server: an object a key, made once by If-None-Match."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

from vmbackup.storage_backends.base import (
    Buffer,
    Entry,
    ObjectExists,
    ObjectMissing,
    ObjectTruncated,
    ProbeResult,
    StoreError,
    StoreUnavailable,
    check_key,
)
from vmbackup.storage_backends.probe import probe_store
from vmbackup.storage_backends.s3_bucket import create_bucket, look_at
from vmbackup.storage_backends.s3_client import Body, make_client
from vmbackup.storage_backends.s3_download import Download
from vmbackup.storage_backends.s3_errors import (
    answer_of,
    is_bodiless,
    is_denied,
    is_foreign,
    is_missing_key,
    is_transient,
    told,
)
from vmbackup.storage_backends.s3_retry import Patience
from vmbackup.storage_backends.s3_settings import S3Settings, bucket_and_prefix

T = TypeVar("T")
_PAGE = 1000  # names of a list at a time: the most that servers give
_COMPARED = 1 << 20  # bytes that are compared at a time, so that no second pack is held


class S3Store:
    """Objects of a bucket below a prefix. Shared by threads; at most `settings.connections` requests at a time.

    A put is one request with If-None-Match, then a look whether it is there. What may pass (a cut connection, a
    busy server) is repeated with the same bytes until `settings.patience` is over.
    """

    def __init__(self, url: str, settings: S3Settings, *, create: bool = False) -> None:
        self._bucket, self._prefix = bucket_and_prefix(url)
        self._settings = settings
        self._client = make_client(settings)
        self._patience = Patience(settings.patience)
        self._slots = threading.BoundedSemaphore(settings.connections)
        if create:
            try:
                with self._translated("make"):
                    amazon = settings.endpoint.endswith(".amazonaws.com")
                    create_bucket(self._ask, self._bucket, settings.region, amazon=amazon)
            except BaseException:
                self.close()
                raise

    @property
    def url(self) -> str:
        """The address that `open_store` takes, beside the settings."""
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    @property
    def place(self) -> str:
        """The url and the server: buckets of one name exist at several."""
        return f"{self.url} at {self._settings.endpoint}"

    def put(self, key: str, data: Buffer) -> None:
        """Create the object, once and durably. Raises as Store.put says."""
        name = self._name(key)
        with self._translated(f"store {key} in"), memoryview(data) as whole, whole.cast("B") as view:
            trial = self._patience.trial()
            while True:
                if self._created(name, view):
                    # Proxies and gateways have been seen to answer 200 to what they then lost.
                    if self._size(name) == view.nbytes:
                        return
                elif (same := self._holds(name, view)) is not None:
                    if same:
                        return
                    raise ObjectExists(key)
                if not trial.wait():
                    message = f"{self.place} says that it stored {key}, and does not have it"
                    raise StoreUnavailable(message, "look at what stands between this machine and the server")

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return exactly the bytes asked for. Raises as Store.get says."""
        buffer = bytearray()

        def room(size: int) -> memoryview:
            nonlocal buffer
            buffer = bytearray(size)
            return memoryview(buffer)

        self._read(key, offset, length, room)
        return bytes(buffer)

    def read_into(self, key: str, offset: int, buffer: memoryview) -> None:
        """Fill the whole buffer. Raises as Store.get says."""
        self._read(key, offset, buffer.nbytes, lambda _: buffer)

    def stat(self, key: str) -> Entry:
        """Return size and time of an object. Raises ObjectMissing."""
        name, doing = self._name(key), f"read {key} in"
        with self._translated(doing):
            try:
                found = self._ask("head_object", Bucket=self._bucket, Key=name)
            except Exception as error:
                raise self._why(key, doing, error) from error
        return Entry(key, found["ContentLength"], float(int(found["LastModified"].timestamp())))

    def list(self, prefix: str, after: str = "") -> Iterator[Entry]:
        """Yield the entries in order of key, as Store.list says; one page is held at a time."""
        last = self._prefix + after if after else ""
        while True:
            page = self._page(self._prefix + prefix, last)
            start = last
            for item in page.get("Contents", []):
                if item["Key"] == last:
                    continue  # some list an object twice while it is written
                if item["Key"] < last:
                    raise StoreUnavailable(f"{self.place} lists out of order: {item['Key']!r} after {last!r}")
                last = item["Key"]
                if last != self._prefix:  # an empty object that web consoles make for a folder
                    # Whole seconds, as a HEAD tells them.
                    modified = float(int(item["LastModified"].timestamp()))
                    yield Entry(last[len(self._prefix) :], item["Size"], modified)
            if not page.get("IsTruncated"):
                return
            if last == start:
                raise StoreUnavailable(f"{self.place} lists nothing and says that there is more")

    def delete(self, key: str) -> None:
        """Remove an object: for good where the bucket keeps no versions. No error where there is none."""
        name = self._name(key)
        with self._translated(f"delete {key} in"):
            try:
                self._ask("delete_object", Bucket=self._bucket, Key=name)
            except Exception as error:
                if answer_of(error).code != "NoSuchKey":
                    raise

    def probe(self) -> ProbeResult:
        """Look at what is set for the bucket, then try with a throw-away object what a repository relies on.

        Raises as Store.put says, and StoreUnfit.
        """
        with self._translated("look at"):
            facts = look_at(self._ask, self._bucket, self._prefix)
        return replace(probe_store(self), bucket=facts)

    def close(self) -> None:
        """Give back the connections."""
        self._client.close()

    def _name(self, key: str) -> str:
        check_key(key)
        return self._prefix + key

    def _created(self, name: str, view: memoryview) -> bool:
        """Put the object where there is none; False where there is one."""
        try:
            self._repeated(
                lambda: self._client.put_object(Bucket=self._bucket, Key=name, Body=Body(view), IfNoneMatch="*")
            )
        except Exception as error:
            if answer_of(error).code in ("PreconditionFailed", "412"):
                return False
            raise
        return True

    def _size(self, name: str) -> int | None:
        """The object's size in bytes; None where there is none."""
        try:
            return int(self._ask("head_object", Bucket=self._bucket, Key=name)["ContentLength"])
        except Exception as error:
            if is_missing_key(error):
                return None
            raise

    def _holds(self, name: str, view: memoryview) -> bool | None:
        """Whether the object has these bytes; None where it is gone meanwhile."""
        size = self._size(name)
        if size is None or size != view.nbytes:
            return None if size is None else False
        part = memoryview(bytearray(min(_COMPARED, size)))
        key = name[len(self._prefix) :]
        for start in range(0, size, _COMPARED):
            piece = part[: min(_COMPARED, size - start)]
            try:
                self.read_into(key, start, piece)
            except ObjectMissing:
                return None
            if piece != view[start : start + piece.nbytes]:
                return False
        return True

    def _read(self, key: str, offset: int, length: int | None, room: Callable[[int], memoryview]) -> None:
        name, doing = self._name(key), f"read {key} in"
        if length == 0:  # a range of no bytes cannot be asked for
            self._check_end(key, offset)
            room(0)
            return
        download, trial = Download(key, offset, length, room), self._patience.trial()

        def get_object(**asked: str) -> Any:
            answer = self._client.get_object(Bucket=self._bucket, Key=name, **asked)
            self._patience.answered = True
            return answer

        with self._translated(doing):
            while not download.done:
                before = download.got
                try:
                    with self._slots:
                        download.step(get_object)
                except StoreError:
                    raise
                except Exception as error:
                    self._patience.answered |= bool(answer_of(error).status)
                    trial.progress(download.got - before)
                    if answer_of(error).code in ("InvalidRange", "416"):
                        self._check_end(key, offset if length is None else offset + length)
                        room(0)
                        return
                    if not (is_transient(error) and trial.wait()):
                        raise self._why(key, doing, error) from error

    def _check_end(self, key: str, end: int) -> None:
        size = self.stat(key).size
        if end > size:
            raise ObjectTruncated(key, size, end)

    def _page(self, prefix: str, after: str, most: int = 0) -> Any:
        asked = {"StartAfter": after} if after else {}
        with self._translated("list"):
            return self._ask("list_objects_v2", Bucket=self._bucket, Prefix=prefix, MaxKeys=most or _PAGE, **asked)

    def _why(self, key: str, doing: str, error: Exception) -> Exception:
        """What is told of a failed read. A missing object is answered by 403 to who may not list."""
        if answer_of(error).code == "NoSuchKey":
            return ObjectMissing(key)
        if not (is_denied(error) or is_bodiless(error)):
            return error
        name = self._name(key)
        # A list has words for what is wrong (no bucket, a wrong key), or shows that the object is not there.
        found = self._page(name, "", 1).get("Contents", ())
        if [item["Key"] for item in found] == [name] and not is_missing_key(error):
            return told(error, doing, self.place, self._bucket)
        return ObjectMissing(key)

    def _ask(self, operation: str, **asked: Any) -> Any:
        return self._repeated(lambda: getattr(self._client, operation)(**asked))

    def _repeated(self, request: Callable[[], T]) -> T:
        """The answer to a request, made again while it fails for what may pass. Raises what boto3 raises."""
        trial = self._patience.trial()
        while True:
            try:
                with self._slots:
                    answer = request()
            except Exception as error:
                self._patience.answered |= bool(answer_of(error).status)
                if not (is_transient(error) and trial.wait()):
                    raise
            else:
                self._patience.answered = True
                return answer

    @contextlib.contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except Exception as error:
            if not is_foreign(error):
                raise
            raise told(error, doing, self.place, self._bucket) from error
