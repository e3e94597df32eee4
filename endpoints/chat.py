"""Chat completions from one server, many at once: for whoever wants texts of a served model and nothing else."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from endpoints.background import for_each, results_of, run_in_thread
from endpoints.server import EndpointError, Server, base_url

__all__ = ["chat_replies", "chat_server", "listed_models"]

_RETRIES: Final = 4


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


def chat_replies(server: Server, bodies: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, str]]:
    """(Place in `bodies`, text of the answer) as they come; "" where it has none: only thoughts, a refusal field.

    Closing the iterator stops the asking.

    Raises:
        EndpointError: the server fails a request for good; see `Connection.post`.
    """

    async def produce(put: Callable[[tuple[int, str]], None]) -> None:
        async with server.connect() as connection:

            async def answer(place: int) -> None:
                texts = [str(message["content"]) for message in bodies[place]["messages"]]
                reply = await connection.post("/chat/completions", bodies[place], texts)
                try:
                    content = reply["choices"][0]["message"].get("content")
                except (LookupError, TypeError, AttributeError):
                    problem = "answered with no chat completion"
                    raise EndpointError(f"{server.flag}: {server.base}: {problem}", problem) from None
                put((place, content if isinstance(content, str) else ""))

            await for_each(range(len(bodies)), answer, min(server.concurrency, len(bodies)))

    return results_of(produce)
