"""A bucket that keeps versions: of each name the first version holds, whatever was put or deleted after it.

A delete marker or an overwrite by somebody who cannot delete versions is looked through. And where a server ignores
If-None-Match, the order of the versions, which the server decides, tells whose put was the first.
"""

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from vmbackup.storage_backends.base import DeleteRefused, StoreUnavailable
from vmbackup.storage_backends.s3_errors import answer_of, is_denied
from vmbackup.storage_backends.s3_requests import Requests

_PAGE = 1000  # versions of a list at a time: the most that servers give
_KNOWN = 16384  # names whose first version is remembered: 5 MB
_CEPH = re.compile(r"tx[0-9a-f]{21}-[0-9a-f]+-[0-9a-f]+-.+")  # how Ceph's gateway numbers requests
_SLOW_BYTES, _SLOW_PIECE = 512 << 10, 64 << 10


class Version(NamedTuple):
    """A version of an object: the server's id of it, bytes, seconds since 1970 by the server's clock."""

    id: str
    size: int
    modified: float


class Versions:
    """The first versions of a bucket's names. Shared by threads. Raises what boto3 raises."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._known: OrderedDict[str, Version] = OrderedDict()
        self._lock = threading.Lock()

    def look(self, name: str) -> Version | None:
        """The first version of a name as the server shows it now; None where it has none."""
        found = None
        for item, version, _ in self._items(name, few=True):
            if item != name:
                break
            found = version or found
        self._remember(name, found)
        return found

    def known(self, name: str) -> Version | None:
        """The same, from memory if it was seen: it changes only when it is deleted."""
        with self._lock:
            found = self._known.get(name)
        return found or self.look(name)

    def list(self, prefix: str, after: str) -> Iterator[tuple[str, Version]]:
        """Names that start with `prefix` and come after `after`, in order, with their first versions."""
        last, first = after, None
        for name, version, _ in self._items(prefix, after):
            if name <= after:
                continue  # some servers begin at the marker, not after it
            if name != last:
                if first:
                    self._remember(last, first)
                    yield last, first
                last, first = name, None
            first = version or first
        if first:
            self._remember(last, first)
            yield last, first

    def delete(self, name: str) -> None:
        """Delete all versions and markers of a name. DeleteRefused, after all others, where one must stay."""
        found = []
        for item, _, version_id in self._items(name):
            if item != name:
                break
            found.append(version_id)
        refused: DeleteRefused | None = None
        for version_id in found:  # the newest first: the first version holds to the end
            try:
                self.drop(name, version_id)
            except DeleteRefused as error:
                refused = error
        self.forget(name)
        if refused:
            raise refused

    def drop(self, name: str, version_id: str) -> None:
        """Delete one version. Raises DeleteRefused."""
        try:
            self._requests.ask("delete_object", Key=name, VersionId=version_id)
        except Exception as error:
            if answer_of(error).code in ("NoSuchKey", "NoSuchVersion"):
                return
            if is_denied(error) or answer_of(error).code in ("InvalidRequest", "ObjectLocked"):
                raise DeleteRefused(name, self.locked_until(name, version_id)) from error
            raise

    def locked_until(self, name: str, version_id: str) -> float | None:
        """Until when a version cannot be deleted, in seconds since 1970; None where it can, or that is not told."""
        try:
            answer = self._requests.ask("get_object_retention", Key=name, VersionId=version_id)
        except Exception as error:
            if answer_of(error).status:
                return None
            raise
        return float(answer["Retention"]["RetainUntilDate"].timestamp())

    def forget(self, name: str) -> None:
        """Look again the next time."""
        self._remember(name, None)

    def _remember(self, name: str, version: Version | None) -> None:
        with self._lock:
            if version is None:
                self._known.pop(name, None)
                return
            self._known[name] = version
            self._known.move_to_end(name)
            if len(self._known) > _KNOWN:
                self._known.popitem(last=False)

    def _items(self, prefix: str, after: str = "", *, few: bool = False) -> Iterator[tuple[str, Version | None, str]]:
        """Name, version (None for a marker) and id; names in order, of each the newest first, then its markers.

        `few`: a first page that is enough for one name of one version.
        """
        asked: dict[str, Any] = {"KeyMarker": after} if after else {}
        last, count = "", 2 if few else _PAGE
        while True:
            page = self._requests.ask("list_object_versions", Prefix=prefix, MaxKeys=count, **asked)
            count = _PAGE
            versions = [(v["Key"], _version(v), v["VersionId"]) for v in page.get("Versions", ())]
            markers = [(m["Key"], None, m["VersionId"]) for m in page.get("DeleteMarkers", ())]
            for item in sorted([*versions, *markers], key=lambda i: i[0]):  # stable: their order is the server's
                if item[0] < last:
                    raise StoreUnavailable(f"{self._requests.place} lists out of order: {item[0]!r} after {last!r}")
                last = item[0]
                yield item
            if not page.get("IsTruncated"):
                return
            told = {"KeyMarker": page.get("NextKeyMarker"), "VersionIdMarker": page.get("NextVersionIdMarker")}
            following = {name: value for name, value in told.items() if value}
            if not following or following == asked:
                raise StoreUnavailable(f"{self._requests.place} lists nothing and says that there is more")
            asked = following

    # What holds where the server ignores If-None-Match

    def settles(self, name: str) -> bool:
        """Whether the order of versions can stand for If-None-Match here; `name` is one to throw away.

        It can where the server gives each put its place in the order when it is done, at once and for good. Ceph
        does, in the bucket's index. A server that orders by the time at which a put began does not: what began first
        and ended last would come to stand before a put that had found itself the first.
        """
        put, asked = self._requests.client.put_object, {"Bucket": self._requests.bucket, "Key": name}
        inner: list[Any] = []
        outer = put(Body=_Overtaken(lambda: inner.append(put(Body=b"2", **asked))), **asked)
        order = [version_id for item, _, version_id in self._items(name) if item == name]
        ceph = _CEPH.fullmatch(outer["ResponseMetadata"].get("RequestId", "")) is not None
        return ceph and order == [answer.get("VersionId") for answer in (outer, *inner)]


def _version(told: Any) -> Version:
    return Version(told["VersionId"], told["Size"], float(int(told["LastModified"].timestamp())))


class _Overtaken:
    """A body of zeros that calls `overtake` once while it is sent, not while it is read to be signed."""

    def __init__(self, overtake: Callable[[], None]) -> None:
        self._overtake: Callable[[], None] | None = overtake
        self._at, self._signed = 0, False

    def __len__(self) -> int:
        return _SLOW_BYTES

    def read(self, _size: int = -1) -> bytes:
        piece = bytes(min(_SLOW_PIECE, _SLOW_BYTES - self._at))
        if self._at and self._signed and self._overtake:
            overtake, self._overtake = self._overtake, None
            overtake()
        self._at += len(piece)
        self._signed |= not piece
        return piece

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + {0: 0, 1: self._at, 2: _SLOW_BYTES}[whence]
        return self._at

    def tell(self) -> int:
        return self._at
