"""Who may use the admin address."""

import contextlib
import hashlib
import ipaddress
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from gateway import LaunchError
from gateway.studio.page import PAGE_PATHS
from gateway.tenants import key_of

_Scope = MutableMapping[str, Any]
#: Paths that probes and Prometheus ask, which have no key: they change nothing, and say no
#: more than names of policies and of tenants that the operator named.
OPEN_PATHS = frozenset({"/livez", "/readyz", "/health", "/metrics"})
_LEAST_KEY = 16


@dataclass(slots=True)
class AdminKeys:
    """The keys in a file, one a line; read anew where it changes, so that keys can be rotated.

    Raises:
        LaunchError: it cannot be read, holds none, or one that is too short.
    """

    path: Path | None
    _digests: list[bytes] = field(default_factory=list, init=False)
    _stamp: tuple[int, int] = field(default=(0, 0), init=False)

    def __post_init__(self) -> None:
        self.refresh()

    def refresh(self) -> None:
        if self.path is None:
            return
        try:
            stat = self.path.stat()
            stamp = stat.st_mtime_ns, stat.st_ino
            if stamp == self._stamp:
                return
            lines = self.path.read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise LaunchError(f"--eco-admin-key-file: {self.path}: cannot be read") from error
        if not lines or min(map(len, lines)) < _LEAST_KEY:
            raise LaunchError(
                f"--eco-admin-key-file: {self.path}: expected one key a line, of {_LEAST_KEY} characters at least"
            )
        self._digests, self._stamp = [_digest(line) for line in lines], stamp

    @property
    def is_asked(self) -> bool:
        return self.path is not None

    def admits(self, key: str | None) -> bool:
        """Whether it is one of the keys, in a time that does not depend on it."""
        given, admitted = _digest(key or ""), False
        for digest in self._digests:
            admitted |= secrets.compare_digest(given, digest)
        return admitted


def check_admin_address(host: str, keys: AdminKeys) -> None:
    """Raise `LaunchError` for an address beyond this machine without a key."""
    if not keys.is_asked and not _is_local(host):
        raise LaunchError(
            f"--eco-admin-host: {host}: is open to other machines; give --eco-admin-key-file FILE, "
            "or listen on 127.0.0.1"
        )


class AdminDoor:
    """ASGI around the admin application: asks for the key, or where there is none, that no web page calls."""

    def __init__(self, app: Any, keys: AdminKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(
        self, scope: _Scope, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        if scope["type"] == "http" and (why := self._refusal(scope["path"], Headers(scope=scope))):
            status = HTTPStatus.UNAUTHORIZED if self._keys.is_asked else HTTPStatus.FORBIDDEN
            headers = {"WWW-Authenticate": "Bearer"} if self._keys.is_asked else {}
            await JSONResponse({"error": {"message": why}}, status_code=status, headers=headers)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, path: str, headers: Headers) -> str | None:
        if path in OPEN_PATHS:
            return None
        if self._keys.is_asked:
            if path in PAGE_PATHS or self._keys.admits(key_of(headers)):
                return None
            return "wrong or no admin key (Authorization: Bearer …)"
        # A browser on this machine would carry out what any page asks of a local address, that of another port too.
        host, origin = headers.get("host", ""), headers.get("origin")
        with contextlib.suppress(ValueError):  # what is no address is not local
            if _is_local(urlsplit(f"//{host}").hostname or "") and origin in (None, f"http://{host}"):
                return None
        return "without --eco-admin-key-file the admin address is for this machine alone"


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
