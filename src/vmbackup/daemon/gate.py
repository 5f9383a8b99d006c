"""Who may see the page: whoever shows the token, once by a form, then by a cookie; scripts by a header."""

import hashlib
import hmac
import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from vmbackup.daemon.control_http import HttpRequest, encoded
from vmbackup.errors import ConfigError

_COOKIE = "vmbackup"
_SHORTEST = 16  # characters of a token: with letters and digits that is beyond guessing
_FIELDS = 4  # of the form
_HTML = "text/html; charset=utf-8"


class Tries:
    """Wrong tries by address: a few at once, then one now and then. Others are not kept out by them."""

    AT_ONCE = 10
    REFILL_SECONDS = 6.0  # for one more
    ADDRESSES = 1024  # that are remembered: the ones that were silent longest go first

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._full_at: OrderedDict[str, float] = OrderedDict()  # when an address has all its tries again

    def allowed(self, address: str) -> bool:
        """Whether that address may try."""
        with self._lock:
            ahead = self._full_at.get(_network(address), 0.0) - self._monotonic()
        return ahead <= (self.AT_ONCE - 1) * self.REFILL_SECONDS

    def wrong(self, address: str) -> None:
        """One more was wrong."""
        network, now = _network(address), self._monotonic()
        with self._lock:
            self._full_at[network] = max(now, self._full_at.get(network, now)) + self.REFILL_SECONDS
            self._full_at.move_to_end(network)
            while len(self._full_at) > self.ADDRESSES:
                self._full_at.popitem(last=False)


class Gate:
    """Lets in who knows `token`; everybody where it is None. A cookie holds a value derived from it, not itself."""

    def __init__(self, token: str | None, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Raises ConfigError for a token that could be guessed."""
        if token is not None and len(token) < _SHORTEST:
            hint = "'openssl rand -hex 32' makes a good one; put it into the file that web_token_file names"
            raise ConfigError(f"the token of the page has less than {_SHORTEST} characters", hint)
        self._token = token.encode() if token is not None else None
        self._tries = Tries(monotonic)

    def lets_in(self, request: HttpRequest) -> bool:
        """Whether the request shows the token, or the cookie."""
        if self._token is None:
            return True
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self._is_token(shown.strip(), request.peer)
        return hmac.compare_digest(_cookie(request), self._derived())

    def login(self, request: HttpRequest, headers: Mapping[str, str]) -> bytes:
        """The answer to the form: on to the page with a cookie, or back to the form."""
        if not self._is_token(_shown(request.body), request.peer):
            why = "wrong" if self._tries.allowed(request.peer) else "wait"
            return encoded(HTTPStatus.SEE_OTHER, _HTML, b"", {**headers, "Location": f"/#{why}"})
        secure = "; Secure" if request.headers.get("x-forwarded-proto", "").lower() == "https" else ""
        cookie = f"{_COOKIE}={self._derived()}; HttpOnly; SameSite=Strict; Path=/{secure}"
        return encoded(HTTPStatus.SEE_OTHER, _HTML, b"", {**headers, "Location": "/", "Set-Cookie": cookie})

    def _is_token(self, shown: str, address: str) -> bool:
        """Compared in constant time; after too many wrong ones from an address all of its are wrong for a while."""
        if self._token is None:
            return True
        if not self._tries.allowed(address):
            return False
        digests = [hashlib.sha256(text).digest() for text in (shown.encode("utf-8", "replace"), self._token)]
        right = hmac.compare_digest(*digests)
        if not right:
            self._tries.wrong(address)
        return right

    def _derived(self) -> str:
        return hmac.new(self._token or b"", b"vmbackup page", hashlib.sha256).hexdigest()


def _shown(body: bytes) -> str:
    """The token of the form, "" where there is none."""
    try:
        return parse_qs(body.decode("latin-1"), max_num_fields=_FIELDS).get("token", [""])[0].strip()
    except ValueError:
        return ""


def _network(address: str) -> str:
    """What one machine may have many of is one: the /64 of an IPv6 address."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is None:
        return str(ipaddress.ip_network((found, 64), strict=False))
    return address


def _cookie(request: HttpRequest) -> str:
    try:
        morsel = SimpleCookie(request.headers.get("cookie", "")).get(_COOKIE)
    except CookieError:
        return ""
    value = morsel.value if morsel else ""
    return value if value.isascii() else ""
