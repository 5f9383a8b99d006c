"""A store in a bucket of an S3 server: an object a key, made once by If-None-Match."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from vmbackup.storage_backends.base import (
    Buffer,
    DeleteRefused,
    Entry,
    ObjectExists,
    ObjectMissing,
    ObjectTruncated,
    ProbeResult,
    StoreError,
    StoreUnavailable,
    check_key,
)
from vmbackup.storage_backends.probe import PROBE_PREFIX, probe_store
from vmbackup.storage_backends.s3_bucket import create_bucket, look_at, versioning
from vmbackup.storage_backends.s3_client import Body
from vmbackup.storage_backends.s3_download import Download
from vmbackup.storage_backends.s3_errors import answer_of, is_bodiless, is_denied, is_missing_key, is_transient, told
from vmbackup.storage_backends.s3_lock import lock_version, no_lock
from vmbackup.storage_backends.s3_powers import examine
from vmbackup.storage_backends.s3_requests import Requests
from vmbackup.storage_backends.s3_settings import S3Settings, bucket_and_prefix
from vmbackup.storage_backends.s3_versions import Versions

_PAGE = 1000  # names of a list at a time: the most that servers give
_COMPARED = 1 << 20  # bytes that are compared at a time, so that no second pack is held
_GONE = {"NoSuchKey", "NoSuchVersion"}


class S3Store:
    """Objects of a bucket below a prefix. Shared by threads; at most `settings.connections` requests at a time.

    A put is one request with If-None-Match, then a look whether it is there. What may pass (a cut connection, a
    busy server) is repeated with the same bytes until `settings.patience` is over. Where the bucket keeps versions
    an object is the first version of its name, in every verb.
    """

    def __init__(self, url: str, settings: S3Settings, *, create: bool = False, lockable: bool = False) -> None:
        self._bucket, self._prefix = bucket_and_prefix(url)
        self._settings = settings
        self._requests = Requests(settings, self._bucket, self.place)
        self._found: list[Versions | None] = []
        self._finding = threading.Lock()
        if create:
            try:
                with self._requests.translated("make"):
                    amazon = settings.endpoint.endswith(".amazonaws.com")
                    create_bucket(self._requests.ask, settings.region, amazon=amazon, lockable=lockable)
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
        with self._requests.translated(f"store {key} in"), memoryview(data) as whole, whole.cast("B") as view:
            versions = self._versions()
            trial = self._requests.trial()
            while True:
                made = self._created(name, view)
                stands = self._is_first(versions, name, view, made) if versions else self._stands(name, view, made)
                if stands:
                    return
                if stands is False:
                    raise ObjectExists(key)
                # Proxies and gateways have been seen to answer 200 to what they then lost.
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
        with self._requests.translated(doing):
            if versions := self._versions():
                first = versions.look(name)
                if first is None:
                    raise ObjectMissing(key)
                return Entry(key, first.size, first.modified)
            try:
                found = self._requests.ask("head_object", Key=name)
            except Exception as error:
                raise self._why(key, doing, error) from error
        return Entry(key, found["ContentLength"], float(int(found["LastModified"].timestamp())))

    def list(self, prefix: str, after: str = "") -> Iterator[Entry]:
        """Yield the entries in order of key, as Store.list says; one page is held at a time."""
        start = self._prefix + after if after else ""
        with self._requests.translated("list"):
            versions = self._versions()
            if versions is None:
                yield from self._list_plain(self._prefix + prefix, start)
                return
            for name, first in versions.list(self._prefix + prefix, start):
                if name != self._prefix:  # an empty object that web consoles make for a folder
                    yield Entry(name[len(self._prefix) :], first.size, first.modified)

    def delete(self, key: str) -> None:
        """Remove an object, where the bucket keeps versions all of them. As Store.delete says."""
        name = self._name(key)
        with self._requests.translated(f"delete {key} in"):
            try:
                if versions := self._versions():
                    versions.delete(name)
                else:
                    self._requests.ask("delete_object", Key=name)
            except DeleteRefused as error:
                raise DeleteRefused(key, error.until) from error
            except Exception as error:
                if answer_of(error).code not in _GONE:
                    raise

    def lock(self, key: str, seconds: float) -> float:
        """Lock the object, and read back that it is. As Store.lock says."""
        name = self._name(key)
        with self._requests.translated(f"lock {key} in"):
            versions = self._versions()
            if versions is None:
                raise no_lock(self._bucket)
            first = versions.known(name)
            if first is None:
                raise ObjectMissing(key)
            return lock_version(self._requests, versions, name, first.id, seconds)

    def probe(self, *, powers: bool = False) -> ProbeResult:
        """Look at what is set for the bucket, then try with throw-away objects what a repository relies on.

        Raises as Store.put says, and StoreUnfit.
        """
        with self._requests.translated("look at"):
            facts = look_at(self._requests.ask, self._bucket, self._prefix)
            versions = self._versions()
            settled = True
            if versions:
                where = self._prefix + PROBE_PREFIX
                facts, settled = examine(self._requests, versions, facts, where, powers=powers)
        found = probe_store(self)
        return replace(found, put_if_absent=found.put_if_absent and settled, bucket=facts)

    def close(self) -> None:
        """Give back the connections."""
        self._requests.client.close()

    def _name(self, key: str) -> str:
        check_key(key)
        return self._prefix + key

    def _versions(self) -> Versions | None:
        """The bucket's versions, where it keeps or has kept such; asked for once."""
        with self._finding:
            if not self._found:
                keeps = versioning(self._requests.ask)
                self._found.append(Versions(self._requests) if keeps else None)
            return self._found[0]

    def _created(self, name: str, view: memoryview) -> str | None:
        """Put the object where there is none; gives the version's id. None where there is one."""
        put = self._requests.client.put_object
        try:
            answer = self._requests.repeated(
                lambda: put(Bucket=self._bucket, Key=name, Body=Body(view), IfNoneMatch="*")
            )
        except Exception as error:
            if answer_of(error).code in ("PreconditionFailed", "412"):
                return None
            raise
        return str(answer.get("VersionId") or "null")

    def _stands(self, name: str, view: memoryview, made: str | None) -> bool | None:
        """Whether the object stands with these bytes after a put; None where it does not stand at all."""
        size = self._size(name)
        if made is not None:
            return True if size == view.nbytes else None
        return None if size is None else self._holds(name, view, size)

    def _is_first(self, versions: Versions, name: str, view: memoryview, made: str | None) -> bool | None:
        """The same by versions: the first one holds. One that was made and came second is taken away again."""
        first = versions.look(name)
        if first is None:
            return None
        if first.id == made:
            return True if first.size == view.nbytes else None
        same = self._holds(name, view, first.size)
        if made is not None:
            with contextlib.suppress(DeleteRefused):
                versions.drop(name, made)
        return same

    def _size(self, name: str) -> int | None:
        """The object's size in bytes; None where there is none."""
        try:
            return int(self._requests.ask("head_object", Key=name)["ContentLength"])
        except Exception as error:
            if is_missing_key(error):
                return None
            raise

    def _holds(self, name: str, view: memoryview, size: int) -> bool | None:
        """Whether the object, of `size` bytes, has these; None where it is gone meanwhile."""
        if size != view.nbytes:
            return False
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
        with self._requests.translated(doing):
            versions = self._versions()
            if versions is None:
                self._fetch(key, offset, length, room)
                return
            for find in (versions.known, versions.look):  # what is remembered may have been deleted since
                first = find(name)
                if first is None:
                    raise ObjectMissing(key)
                with contextlib.suppress(ObjectMissing):
                    self._fetch(key, offset, length, room, VersionId=first.id)
                    return
            raise ObjectMissing(key)

    def _fetch(
        self, key: str, offset: int, length: int | None, room: Callable[[int], memoryview], **version: str
    ) -> None:
        download, trial = Download(key, offset, length, room), self._requests.trial()

        def get_object(**asked: str) -> Any:
            answer = self._requests.client.get_object(Bucket=self._bucket, Key=self._name(key), **version, **asked)
            self._requests.answered()
            return answer

        while not download.done:
            before = download.got
            try:
                with self._requests.slots:
                    download.step(get_object)
            except StoreError:
                raise
            except Exception as error:
                self._requests.answered(error)
                trial.progress(download.got - before)
                if answer_of(error).code in ("InvalidRange", "416"):
                    self._check_end(key, offset if length is None else offset + length)
                    room(0)
                    return
                if not (is_transient(error) and trial.wait()):
                    raise self._why(key, f"read {key} in", error, versioned=bool(version)) from error

    def _check_end(self, key: str, end: int) -> None:
        size = self.stat(key).size
        if end > size:
            raise ObjectTruncated(key, size, end)

    def _list_plain(self, prefix: str, last: str) -> Iterator[Entry]:
        while True:
            page = self._page(prefix, last)
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

    def _page(self, prefix: str, after: str, most: int = 0) -> Any:
        asked = {"StartAfter": after} if after else {}
        with self._requests.translated("list"):
            return self._requests.ask("list_objects_v2", Prefix=prefix, MaxKeys=most or _PAGE, **asked)

    def _why(self, key: str, doing: str, error: Exception, *, versioned: bool = False) -> Exception:
        """What is told of a failed read. A missing object is answered by 403 to who may not list."""
        if answer_of(error).code in _GONE:
            return ObjectMissing(key)
        if versioned or not (is_denied(error) or is_bodiless(error)):
            return error
        name = self._name(key)
        # A list has words for what is wrong (no bucket, a wrong key), or shows that the object is not there.
        found = self._page(name, "", 1).get("Contents", ())
        if [item["Key"] for item in found] == [name] and not is_missing_key(error):
            return told(error, doing, self.place, self._bucket)
        return ObjectMissing(key)
