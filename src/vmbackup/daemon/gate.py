"""Who may see the page: whoever shows the token, once by a form, then by a cookie; scripts by a header."""

import hashlib
import hmac
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from vmbackup.daemon.control_http import HttpRequest, encoded

_COOKIE = "vmbackup"
_WRONG_TRIES = 10  # that are answered at once
_REFILL_SECONDS = 6.0  # for one more
_HTML = "text/html; charset=utf-8"


class Gate:
    """Lets in who knows `token`; everybody where it is None. A cookie holds a value derived from it, not itself."""

    def __init__(self, token: str | None, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._token = token.encode() if token is not None else None
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._tries, self._since = float(_WRONG_TRIES), monotonic()

    def lets_in(self, request: HttpRequest) -> bool:
        """Whether the request shows the token, or the cookie."""
        if self._token is None:
            return True
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self._is_token(shown.strip().encode())
        return hmac.compare_digest(_cookie(request), self._derived())

    def login(self, request: HttpRequest, headers: Mapping[str, str]) -> bytes:
        """The answer to the form: on to the page with a cookie, or back to the form."""
        shown = parse_qs(request.body.decode("latin-1"), max_num_fields=4).get("token", [""])[0]
        if not self._is_token(shown.strip().encode()):
            return encoded(HTTPStatus.SEE_OTHER, _HTML, b"", {**headers, "Location": "/?wrong"})
        cookie = f"{_COOKIE}={self._derived()}; HttpOnly; SameSite=Strict; Path=/"
        return encoded(HTTPStatus.SEE_OTHER, _HTML, b"", {**headers, "Location": "/", "Set-Cookie": cookie})

    def _is_token(self, shown: bytes) -> bool:
        """Compared in constant time; wrong ones are counted, and after too many all are wrong for a while."""
        if self._token is None:
            return True
        with self._lock:
            now = self._monotonic()
            self._tries = min(_WRONG_TRIES, self._tries + (now - self._since) / _REFILL_SECONDS)
            self._since = now
            if self._tries < 1:
                return False
            right = hmac.compare_digest(hashlib.sha256(shown).digest(), hashlib.sha256(self._token).digest())
            if not right:
                self._tries -= 1
            return right

    def _derived(self) -> str:
        return hmac.new(self._token or b"", b"vmbackup page", hashlib.sha256).hexdigest()


def _cookie(request: HttpRequest) -> str:
    try:
        morsel = SimpleCookie(request.headers.get("cookie", "")).get(_COOKIE)
    except CookieError:
        return ""
    value = morsel.value if morsel else ""
    return value if value.isascii() else ""
