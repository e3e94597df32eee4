"""One OpenAI-compatible server: which model it has, and many chat completions from it, a bounded number at once."""

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from console.errors import EcoError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

__all__ = ["AugmentationError", "ChatRequest", "ServedModel", "ask", "served_model"]

_MAX_TOKENS = 2048
_RETRIES = 4
_PROBE_TIMEOUT_S = 10.0
_REASON_CHARACTERS = 200


class AugmentationError(EcoError):
    """A model server or a cache file cannot be used; one line that names the flag or file and what to do."""


@dataclass(frozen=True)
class ServedModel:
    """A model a server has."""

    name: str
    context_tokens: int | None
    """How much fits into prompt and answer together, where the server says it (vLLM does)."""

    @property
    def answer_tokens(self) -> int:
        """The longest answer to ask for: half the context, for a server refuses what might not fit."""
        return min(_MAX_TOKENS, (self.context_tokens or 2 * _MAX_TOKENS) // 2)


@dataclass(frozen=True)
class ChatRequest:
    """One chat completion, asked for in full: what the server may choose is not left to it."""

    model: ServedModel
    system: str
    prompt: str
    temperature: float
    seed: int

    @property
    def payload(self) -> dict[str, Any]:
        """The body to send; half a surrogate pair, which no encoder takes, becomes a question mark."""
        contents = {"system": self.system, "user": self.prompt.encode("utf-8", "replace").decode()}
        return {
            "model": self.model.name,
            "messages": [{"role": role, "content": content} for role, content in contents.items()],
            "temperature": self.temperature,
            "seed": self.seed,
            "max_tokens": self.model.answer_tokens,
        }

    @property
    def digest(self) -> str:
        """SHA-256 of the body: the same question to the same model, wherever it is served."""
        text = json.dumps(self.payload, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def served_model(endpoint: str, model: str | None = None) -> ServedModel:
    """The model to ask: `model` if the server has it, else the first of /v1/models.

    Asks once and without patience, so that a wrong endpoint is known before anything else starts. A server without
    /v1/models will do if `model` is given.

    Raises:
        AugmentationError: no URL, nobody answers there, or the server has no such model.
    """
    import openai

    url = _base_url(endpoint)
    with openai.OpenAI(base_url=url, api_key=_api_key(), max_retries=0, timeout=_PROBE_TIMEOUT_S) as client:
        try:
            answer = client.models.with_raw_response.list()
        except openai.NotFoundError as error:
            if model is not None:
                return ServedModel(model, None)
            raise AugmentationError(_no_models(endpoint)) from error
        except openai.OpenAIError as error:
            raise AugmentationError(
                f"--augment-with: {endpoint}: {_reason(error)}; start the server or fix the URL"
            ) from error
    listed = _dig(answer.http_response.content, "data")
    entries = [entry for entry in listed if _is_model(entry)] if isinstance(listed, list) else []
    if not entries:
        raise AugmentationError(_no_models(endpoint))
    asked = [entry for entry in entries if model in (None, entry["id"])]
    if not asked:
        names = ", ".join(entry["id"] for entry in entries)
        raise AugmentationError(f"--augment-with: {endpoint}: no model {model!r}; it serves {names}")
    context = asked[0].get("max_model_len")
    return ServedModel(asked[0]["id"], context if isinstance(context, int) and context > 1 else None)


def ask(
    endpoint: str,
    requests: Sequence[ChatRequest],
    keep: Callable[[ChatRequest, str], None],
    concurrency: int,
    timeout_s: float,
    console: Console,
) -> None:
    """Send the requests, at most `concurrency` at once, and hand each reply to `keep` as it comes.

    Overload and errors of the server (429, 5xx, no connection, no answer within `timeout_s`) are tried again up to
    four times, waiting longer each time.

    Raises:
        AugmentationError: the server fails a request for good; what came before has been kept.
    """
    if not requests:
        return
    columns = (TextColumn("asking the model"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(requests))
        done = 0

        def kept(request: ChatRequest, reply: str) -> None:
            nonlocal done
            keep(request, reply)
            done += 1
            progress.update(task, advance=1)

        try:
            asyncio.run(_ask_all(_base_url(endpoint), requests, kept, concurrency, timeout_s))
        except _RequestError as error:
            raise AugmentationError(
                f"--augment-with: {endpoint}: {error} ({done} of {len(requests)} replies kept); "
                "run again to continue from there"
            ) from error.__cause__


class _RequestError(Exception):
    """The server failed one request for good."""


async def _ask_all(
    url: str,
    requests: Sequence[ChatRequest],
    keep: Callable[[ChatRequest, str], None],
    concurrency: int,
    timeout_s: float,
) -> None:
    import openai

    waiting = iter(requests)
    async with openai.AsyncOpenAI(base_url=url, api_key=_api_key(), max_retries=_RETRIES, timeout=timeout_s) as client:

        async def work() -> None:
            for request in waiting:
                keep(request, await _reply(client, request))

        workers = [asyncio.create_task(work()) for _ in range(min(concurrency, len(requests)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


async def _reply(client: "AsyncOpenAI", request: ChatRequest) -> str:
    """The text of the answer; "" where it has none (only thoughts, a refusal field)."""
    import openai

    try:
        answer = await client.chat.completions.with_raw_response.create(**request.payload)
    except openai.OpenAIError as error:
        raise _RequestError(_reason(error)) from error
    if not isinstance(message := _dig(answer.http_response.content, "choices", 0, "message"), dict):
        raise _RequestError("answered with no chat completion")
    content = message.get("content")
    return content if isinstance(content, str) else ""


def _dig(body: bytes, *path: str | int) -> Any:
    """What lies at the path in a JSON body; None where there is no such thing, or no JSON.

    The client library's own parsing trusts the server: a body of another shape would end in its internals.
    """
    try:
        value: Any = json.loads(body)
        for step in path:
            value = value[step]
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    return value


def _is_model(entry: object) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("id"), str)


def _base_url(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise AugmentationError(
            f"--augment-with: {endpoint!r} is no URL; expected for example http://localhost:8000/v1"
        )
    return endpoint if parts.path.strip("/") else f"{endpoint.rstrip('/')}/v1"


def _api_key() -> str:
    return os.environ.get("OPENAI_API_KEY") or "none"


def _no_models(endpoint: str) -> str:
    return f"--augment-with: {endpoint}: lists no models at /v1/models; check the URL, or name the model"


def _reason(error: Exception) -> str:
    import openai

    if isinstance(error, openai.APITimeoutError):
        return "no answer in time"
    if isinstance(error, openai.APIConnectionError):
        return f"cannot be reached ({error.__cause__ or error})"
    text = " ".join(str(error).split())[:_REASON_CHARACTERS]
    if isinstance(error, openai.APIStatusError):
        return f"answered {error.status_code} ({text})"
    return f"answered with nothing usable ({text})"
