"""HTTP to one OpenAI-compatible server: its address, patience with its limits, and errors that repeat no prompt."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from endpoints.pace import Pace, retry_after_s
from evaluation.errors import TargetError

__all__ = ["Connection", "RefusedError", "Server", "base_url"]

#: Tried again: the server is busy, restarts, or a proxy before it lost it. Every other 4xx stays as it is.
_TEMPORARY: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
#: The server says that it gets too much: everybody waits, not the one request.
_LIMITED: Final = frozenset({429, 503})
_LONGEST_RETRY_AFTER_S: Final = 600.0
_GREETING_TIMEOUT_S: Final = 10.0
_MESSAGE_CHARACTERS: Final = 200
#: A message that has this many characters of a prompt in a row repeats it.
_QUOTE_CHARACTERS: Final = 16
_LEAST_QUOTE_CHARACTERS: Final = 4  # a shorter prompt stands in many a word
_QUOTE_TOKENS: Final = 4


class RefusedError(TargetError):
    """The server refused a request for good.

    Attributes:
        status: of HTTP.
        reason: what the server says, for looking into only: it may repeat the prompt.
    """

    def __init__(self, message: str, status: int, reason: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


@dataclass(frozen=True)
class Server:
    """Where a server is and how patient to be with it.

    Attributes:
        base: its base URL, normally ending in /v1.
        api_key: sent as a bearer token; None: none.
        concurrency: requests in flight at once.
        timeout_s: for one answer.
        max_retries: of one request, after its first attempt.
    """

    base: str
    api_key: str | None
    concurrency: int
    timeout_s: float
    max_retries: int

    def __repr__(self) -> str:  # an error's locals may be printed, and the key is not for printing
        return f"Server({self.base!r})"

    @property
    def root(self) -> str:
        """Where vLLM's own routes are: the base without /v1."""
        return self.base.removesuffix("/v1")

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncIterator["Connection"]:
        headers = {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}
        limits = httpx.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency)
        async with httpx.AsyncClient(headers=headers, limits=limits, timeout=self.timeout_s) as client:
            yield Connection(self, client, Pace(self.concurrency))


def base_url(url: str) -> str:
    """The URL with /v1 where it has no path.

    Raises:
        TargetError: it is no base URL, or holds what must not be written down.
    """
    try:
        parts = urlsplit(url)
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL) as error:
        raise TargetError(f"--target: {url!r} is no URL ({error})") from error
    if parts.username or parts.password:
        raise TargetError("--target: the URL holds a user name or password; leave them out and give an API key instead")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise TargetError(f"--target: {url!r} is no base URL; expected for example http://localhost:8000/v1")
    return url.rstrip("/") if parts.path.strip("/") else f"{url.rstrip('/')}/v1"


class Connection:
    """Requests to a server from one event loop."""

    def __init__(self, server: Server, client: httpx.AsyncClient, pace: Pace) -> None:
        self.server = server
        self.pace = pace
        self._client = client

    async def models(self) -> list[dict[str, Any]]:
        """The entries of /v1/models, asked for once and without patience: a wrong URL is known at once."""
        url = f"{self.server.base}/models"
        try:
            response = await self._client.get(url, timeout=min(_GREETING_TIMEOUT_S, self.server.timeout_s))
        except httpx.RequestError as error:
            raise TargetError(f"--target: {url}: {_transport(error)}; start the server or fix the URL") from error
        if response.status_code != HTTPStatus.OK:
            raise self._refused(url, response, ())
        entries = _json(url, response).get("data")
        return [e for e in entries if isinstance(e, dict) and "id" in e] if isinstance(entries, list) else []

    async def post(self, path: str, body: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
        """The answer to a request below /v1, or to `/tokenize`.

        Args:
            texts: the prompt's parts, which no error message may repeat.

        Raises:
            RefusedError: the server refused it, or kept failing.
            TargetError: the server cannot be reached, or answers with something else than JSON.
        """
        url = f"{self.server.root}/tokenize" if path == "/tokenize" else f"{self.server.base}{path}"
        content = json.dumps(body).encode()  # half a surrogate pair is escaped, and the server's to judge
        for attempt in range(self.server.max_retries + 1):
            last = attempt == self.server.max_retries
            try:
                async with self.pace.slot() as began:
                    response = await self._client.post(
                        url, content=content, headers={"Content-Type": "application/json"}
                    )
            except httpx.RequestError as error:
                self.pace.failed(began)
                if last or isinstance(error, httpx.UnsupportedProtocol):
                    raise TargetError(f"--target: {url}: {_transport(error)}{self._attempts(attempt)}") from error
                await asyncio.sleep(self.pace.backoff_s(attempt))
                continue
            if response.status_code == HTTPStatus.OK:
                self.pace.succeeded()
                return _json(url, response)
            asked_wait_s = retry_after_s(response.headers)
            patient = (asked_wait_s or 0) <= _LONGEST_RETRY_AFTER_S
            if response.status_code not in _TEMPORARY or last or not patient:
                raise self._refused(url, response, [*texts, *_id_texts(body)], attempt)
            await self._wait(response.status_code, began, attempt, asked_wait_s)
        raise AssertionError("the last attempt returns or raises")

    async def _wait(self, status: int, began: float, attempt: int, asked_wait_s: float | None) -> None:
        wait_s = self.pace.backoff_s(attempt) if asked_wait_s is None else asked_wait_s
        self.pace.failed(began)
        if status in _LIMITED:
            self.pace.pause(wait_s)
        await asyncio.sleep(wait_s)

    def _attempts(self, attempt: int) -> str:
        return f" ({attempt + 1} attempts)" if attempt else ""

    def _refused(self, url: str, response: httpx.Response, texts: Sequence[str], attempt: int = 0) -> RefusedError:
        reason = _reason(response)
        shown = _first_line(reason, texts)
        advice = {401: "; give its API key", 403: "; give its API key"}.get(response.status_code, "")
        return RefusedError(
            f"--target: {url}: answered {response.status_code}{self._attempts(attempt)} ({shown}){advice}",
            response.status_code,
            reason,
        )


def _json(url: str, response: httpx.Response) -> dict[str, Any]:
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        message = f"--target: {url}: answered with no JSON object; give an OpenAI-compatible server's base URL"
        raise RefusedError(message, response.status_code, "")
    return answer


def _reason(response: httpx.Response) -> str:
    """What an error's body says: OpenAI's {"error": {"message": …}}, FastAPI's {"detail": …}, or any text."""
    try:
        value: Any = response.json()
    except ValueError:
        return response.text
    for name in ("error", "message", "detail"):
        if isinstance(value, dict) and name in value:
            value = value[name]
    return value if isinstance(value, str) else json.dumps(value)


def _first_line(reason: str, texts: Sequence[str]) -> str:
    line = next((line.strip() for line in reason.splitlines() if line.strip()), "")
    if line.startswith("<"):
        return "a web page"
    if any(_quotes(line, text) for text in texts):
        return "its message repeats the prompt and is left out"
    return line[:_MESSAGE_CHARACTERS] or "without a message"


def _quotes(line: str, text: str) -> bool:
    escaped = json.dumps(text)[1:-1]
    for form in {text, escaped, escaped.replace("\\\\", "\\")}:
        size = min(_QUOTE_CHARACTERS, len(form))
        if size >= _LEAST_QUOTE_CHARACTERS and any(form[at : at + size] in line for at in range(len(form) - size + 1)):
            return True
    return False


def _id_texts(body: Mapping[str, Any]) -> Iterable[str]:
    """The start of a prompt of token ids, as messages would write it."""
    prompt = body.get("prompt")
    if isinstance(prompt, list):
        yield ", ".join(str(token) for token in prompt[:_QUOTE_TOKENS])


def _transport(error: httpx.RequestError) -> str:
    if isinstance(error, httpx.TimeoutException):
        return "no answer in time"
    return f"cannot be reached ({' '.join(str(error).split()) or type(error).__name__})"
