"""The studio's files: a page that asks the admin address and nobody else. It holds nothing of the server's, so it needs
no key; whoever opens it is asked for one.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Response
from starlette.responses import RedirectResponse

_FILES: Final = Path(__file__).parent / "data"
_HOME: Final = "/studio/"
_KINDS: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
#: Nothing but its own files, no script or style in what it shows, no other page around it. Pictures of policies come
#: with the key, as blobs, and are shown as images, in which nothing runs.
_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
        "trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # a new version of the server has a new page
}


def _path_of(file: Path) -> str:
    return _HOME if file.name == "index.html" else _HOME + file.name


#: Files by the path they are served at.
_PAGE: Final = {_path_of(file): file for file in sorted(_FILES.iterdir()) if file.suffix in _KINDS}
#: Paths that answer without a key.
PAGE_PATHS: Final = frozenset({"/", _HOME.rstrip("/"), *_PAGE})


def page_routes() -> APIRouter:
    """The studio at `/studio/`, to which `/` leads."""
    routes = APIRouter(include_in_schema=False)

    async def home() -> Response:
        return RedirectResponse(_HOME.lstrip("/"), headers=_HEADERS)  # wherever a proxy has put it

    routes.add_api_route("/", home)
    routes.add_api_route(_HOME.rstrip("/"), home)
    for path, file in _PAGE.items():
        routes.add_api_route(path, _answer(file.read_bytes(), _KINDS[file.suffix]))
    return routes


def _answer(content: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    async def answer() -> Response:
        return Response(content, media_type=kind, headers=_HEADERS)

    return answer
