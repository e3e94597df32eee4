"""HTTP to one OpenAI-compatible server: its address, patience with its limits, and errors that repeat no prompt."""

import asyncio
import contextlib
import email.utils
import json
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from console.errors import EcoError
from endpoints.background import for_each, run_in_thread

#: Tried again: the server is busy, restarts, or a proxy before it lost it. Every other 4xx stays as it is.
_TEMPORARY: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
#: The server says that it gets too much: everybody waits, not the one request.
_LIMITED: Final = frozenset({429, 503})
_LONGEST_RETRY_AFTER_S: Final = 600.0
_GREETING_TIMEOUT_S: Final = 10.0
_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 30.0
#: Of those who only chat.
_RETRIES: Final = 4
_MESSAGE_CHARACTERS: Final = 200
#: A message that has this many characters of a prompt in a row repeats it.
_QUOTE_CHARACTERS: Final = 16
_LEAST_QUOTE_CHARACTERS: Final = 4  # a shorter prompt stands in many a word
_QUOTE_TOKENS: Final = 4


class EndpointError(EcoError):
    """A server cannot be reached, or does not do what is asked of it; one line that names the flag.

    Attributes:
        problem: the message without flag, address and advice.
    """

    def __init__(self, message: str, problem: str = "") -> None:
        super().__init__(message)
        self.problem = problem or message


class RefusedError(EndpointError):
    """The server answered, and not with what was asked for.

    Attributes:
        status: of HTTP.
        reason: what the server says, for looking into only: it may repeat the prompt.
    """

    def __init__(self, message: str, problem: str, status: int, reason: str = "") -> None:
        super().__init__(message, problem)
        self.status = status
        self.reason = reason


@dataclass(frozen=True)
class Server:
    """Where a server is and how patient to be with it.

    Attributes:
        flag: by which it was given; errors begin with it.
        base: its base URL, normally ending in /v1.
        api_key: sent as a bearer token; None: none.
        concurrency: requests in flight at once.
        timeout_s: for one answer.
        max_retries: of one request, after its first attempt.
    """

    flag: str
    base: str
    api_key: str | None
    concurrency: int
    timeout_s: float
    max_retries: int

    def __repr__(self) -> str:  # an error's locals may be printed, and the key is not for printing
        return f"Server({self.base!r})"

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncIterator["Connection"]:
        headers = {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}
        limits = httpx.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency)
        async with httpx.AsyncClient(headers=headers, limits=limits, timeout=self.timeout_s) as client:
            yield Connection(self, client, Pace(self.concurrency))


def base_url(url: str, flag: str) -> str:
    """The URL with /v1 where it has no path.

    Raises:
        EndpointError: it is no base URL, or holds what must not be written down.
    """
    try:
        parts = urlsplit(url)
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL) as error:
        raise EndpointError(f"{flag}: {url!r} is no URL ({error})") from error
    if parts.username or parts.password:
        raise EndpointError(
            f"{flag}: the URL holds a user name or password; leave them out and give an API key instead"
        )
    example = "expected for example http://localhost:8000/v1"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise EndpointError(f"{flag}: {url!r} is no URL with http or https and a host, so it is no base URL; {example}")
    if parts.query or parts.fragment:
        raise EndpointError(f"{flag}: {url!r} is no base URL; {example}")
    return url.rstrip("/") if parts.path.strip("/") else f"{url.rstrip('/')}/v1"


class Connection:
    """Requests to a server from one event loop."""

    def __init__(self, server: Server, client: httpx.AsyncClient, pace: "Pace") -> None:
        self.server = server
        self.pace = pace
        self._client = client

    async def models(self) -> list[dict[str, Any]]:
        """The entries of /v1/models, asked for once and without patience: a wrong URL is known at once.

        Raises:
            EndpointError: as `post`.
        """
        url = f"{self.server.base}/models"
        try:
            response = await self._client.get(url, timeout=min(_GREETING_TIMEOUT_S, self.server.timeout_s))
        except httpx.RequestError as error:
            problem = _transport(error)
            message = f"{self.server.flag}: {url}: {problem}; start the server or fix the URL"
            raise EndpointError(message, problem) from error
        if response.status_code != HTTPStatus.OK:
            raise self._refused(url, response, ())
        entries = self._json(url, response).get("data")
        if not isinstance(entries, list):
            return []
        return [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]

    async def post(self, path: str, body: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
        """The answer to a request below /v1, or to vLLM's `/tokenize`, which stands beside it.

        Args:
            texts: the prompt's parts, which no error message may repeat.

        Raises:
            RefusedError: the server refused it, kept failing, or answers with something else than JSON.
            EndpointError: the server cannot be reached.
        """
        url = self._url(path)
        response, attempt = await self.exchange(path, body)
        if response.status_code == HTTPStatus.OK:
            return self._json(url, response)
        prompt = body.get("prompt")  # of token ids: messages would write its start
        ids = [", ".join(map(str, prompt[:_QUOTE_TOKENS]))] if isinstance(prompt, list) else []
        raise self._refused(url, response, [*texts, *ids], attempt)

    async def exchange(
        self, path: str, body: Mapping[str, Any], *, temporary: Collection[int] = _TEMPORARY
    ) -> tuple[httpx.Response, int]:
        """The response to a request, whole and whatever its status, and the number of attempts before the last.

        Args:
            temporary: statuses that are tried again.

        Raises:
            EndpointError: the server cannot be reached.
        """
        url = self._url(path)
        content = json.dumps(body).encode()  # half a surrogate pair is escaped, and the server's to judge
        headers = {"Content-Type": "application/json"}
        for attempt in range(self.server.max_retries + 1):
            last = attempt == self.server.max_retries
            try:
                async with self.pace.slot() as began:
                    response = await self._client.post(url, content=content, headers=headers)
            except httpx.RequestError as error:
                self.pace.failed(began)
                if last or isinstance(error, httpx.UnsupportedProtocol):
                    problem = f"{_transport(error)}{_attempts(attempt)}"
                    raise EndpointError(f"{self.server.flag}: {url}: {problem}", problem) from error
                await asyncio.sleep(self.pace.backoff_s(attempt))
                continue
            if response.status_code == HTTPStatus.OK:
                self.pace.succeeded()
                return response, attempt
            wait_s = retry_after_s(response.headers)
            patient = (wait_s or 0) <= _LONGEST_RETRY_AFTER_S
            if response.status_code not in temporary or last or not patient:
                return response, attempt
            wait_s = self.pace.backoff_s(attempt) if wait_s is None else wait_s
            self.pace.failed(began)
            if response.status_code in _LIMITED:
                self.pace.pause(wait_s)
            await asyncio.sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")

    def _url(self, path: str) -> str:
        return f"{self.server.base.removesuffix('/v1') if path == '/tokenize' else self.server.base}{path}"

    def _json(self, url: str, response: httpx.Response) -> dict[str, Any]:
        try:
            answer = response.json()
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            problem = "answered with no JSON object"
            message = f"{self.server.flag}: {url}: {problem}; give an OpenAI-compatible server's base URL"
            raise RefusedError(message, problem, response.status_code)
        return answer

    def _refused(self, url: str, response: httpx.Response, texts: Sequence[str], attempt: int = 0) -> RefusedError:
        """What an error's body says: OpenAI's {"error": {"message": …}}, FastAPI's {"detail": …}, or any text."""
        reason = response.text
        with contextlib.suppress(ValueError, RecursionError):
            value: Any = response.json()
            for name in ("error", "message", "detail"):
                if isinstance(value, dict) and name in value:
                    value = value[name]
            reason = value if isinstance(value, str) else json.dumps(value)
        line = next((line.strip() for line in reason.splitlines() if line.strip()), "without a message")
        if line.startswith("<"):
            line = "a web page"
        elif any(_quotes(line, text) for text in texts):
            line = "its message repeats the prompt and is left out"
        problem = f"answered {response.status_code}{_attempts(attempt)} ({line[:_MESSAGE_CHARACTERS]})"
        advice = "; give its API key" if response.status_code in (401, 403) else ""
        return RefusedError(f"{self.server.flag}: {url}: {problem}{advice}", problem, response.status_code, reason)


def _attempts(attempt: int) -> str:
    return f" ({attempt + 1} attempts)" if attempt else ""


def _quotes(line: str, text: str) -> bool:
    escaped = json.dumps(text)[1:-1]
    for form in {text, escaped, escaped.replace("\\\\", "\\")}:
        size = min(_QUOTE_CHARACTERS, len(form))
        if size >= _LEAST_QUOTE_CHARACTERS and any(form[at : at + size] in line for at in range(len(form) - size + 1)):
            return True
    return False


def _transport(error: httpx.RequestError) -> str:
    if isinstance(error, httpx.TimeoutException):
        return "no answer in time"
    return f"cannot be reached ({' '.join(str(error).split()) or type(error).__name__})"


class Pace:
    """Additive increase, multiplicative decrease of the requests in flight, and a pause of all of them when limited.

    Belongs to one event loop.

    Args:
        most: requests in flight while the server sets no limit.
        seed: of the jitter, by which requests that failed together do not come back together.
    """

    def __init__(self, most: int, seed: int = 0) -> None:
        self._most = most
        self._window = float(most)
        self._active = 0
        self._resume_at = 0.0
        self._lowered_at = -1.0
        self._jitter = random.Random(seed)  # noqa: S311 - spreads requests out, nothing secret
        self._changed = asyncio.Condition()

    @property
    def window(self) -> int:
        """Requests that may be in flight now."""
        return int(self._window)

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[float]:
        """Wait for a place among the requests in flight; gives the moment (`time.monotonic`) it began."""
        while True:
            await asyncio.sleep(max(0.0, self._resume_at - time.monotonic()))
            async with self._changed:
                await self._changed.wait_for(lambda: self._active < self.window)
                if self._resume_at <= time.monotonic():  # else limited while it waited
                    self._active += 1
                    break
        try:
            yield time.monotonic()
        finally:
            self._active -= 1
            async with self._changed:
                self._changed.notify_all()

    def succeeded(self) -> None:
        """One more request in flight for every window of answers."""
        self._window = min(self._most, self._window + 1 / self._window)

    def failed(self, began: float) -> None:
        """Half the requests in flight; requests that began before the last cut are part of the same overload."""
        if began > self._lowered_at:
            self._window = max(1.0, self._window / 2)
            self._lowered_at = time.monotonic()

    def pause(self, wait_s: float) -> None:
        """Begin no request for so long."""
        self._resume_at = max(self._resume_at, time.monotonic() + wait_s)

    def backoff_s(self, attempt: int) -> float:
        """Wait before attempt `attempt` + 1, counted from 0: doubled each time, half of it by chance."""
        longest = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0**attempt)
        return longest * self._jitter.uniform(0.5, 1.0)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """What `Retry-After-Ms` or `Retry-After` (RFC 9110, section 10.2.3: seconds or a date) say; None without either."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        with contextlib.suppress(ValueError):
            return max(0.0, float(value) * unit)
        with contextlib.suppress(ValueError, TypeError):
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None


def chat_server(url: str, flag: str, *, concurrency: int, timeout_s: float) -> Server:
    """The server at a base URL, with or without its /v1. The API key is OPENAI_API_KEY's, or "none".

    Raises:
        EndpointError: it is no base URL.
    """
    api_key = os.environ.get("OPENAI_API_KEY") or "none"
    return Server(flag, base_url(url, flag), api_key, concurrency, timeout_s, _RETRIES)


def listed_models(server: Server) -> list[dict[str, Any]]:
    """The entries of /v1/models (see `Connection.models`)."""

    async def ask() -> list[dict[str, Any]]:
        async with server.connect() as connection:
            return await connection.models()

    return run_in_thread(ask)


def chat(server: Server, bodies: Sequence[Mapping[str, Any]], keep: Callable[[int, str], None]) -> None:
    """Chat completions, and `keep(place in bodies, text)` as each comes; "" where one has no text: only thoughts, a
    refusal field. `keep` is called from another thread, one call at a time. Ctrl-C stops the asking.

    Raises:
        EndpointError: the server fails a request for good; see `Connection.post`.
    """

    async def ask() -> None:
        async with server.connect() as connection:

            async def answer(place: int) -> None:
                texts = [str(message["content"]) for message in bodies[place]["messages"]]
                reply = await connection.post("/chat/completions", bodies[place], texts)
                try:
                    content = reply["choices"][0]["message"].get("content")
                except (LookupError, TypeError, AttributeError):
                    problem = "answered with no chat completion"
                    raise EndpointError(f"{server.flag}: {server.base}: {problem}", problem) from None
                keep(place, content if isinstance(content, str) else "")

            await for_each(range(len(bodies)), answer, min(server.concurrency, len(bodies)))

    run_in_thread(ask)
