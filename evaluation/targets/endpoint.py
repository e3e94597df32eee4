"""A served model as it is: any server with OpenAI's API, vLLM's and `eco serve` first.

Requests are always in flight up to a limit, so the engine stays busy; the server's own limits lower it for a while.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from endpoints.background import for_each, results_of, run_in_thread
from endpoints.server import Connection, EndpointError, Server, base_url
from evaluation.errors import TargetError
from evaluation.replies import Ask, Reply
from evaluation.targets.endpoint_checks import check_consistency, check_needs, survey, try_each_kind
from evaluation.targets.endpoint_replies import Abilities
from evaluation.targets.endpoint_session import Session

__all__ = ["EndpointTarget"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Served:
    """A model that the server has."""

    name: str
    max_model_len: int | None
    by_vllm: bool


class EndpointTarget:
    """A `Target` (see `evaluation.replies`) behind an OpenAI-compatible URL.

    Generated answers are what a user gets. Scored answers are right where the server treats a text in the prompt as
    it treats its own answer; `check` finds out. The server is asked for nothing before the first call.

    Args:
        url: base URL, with or without its /v1.
        model: name it is served by; None: the first that the server lists.
        api_key: sent as a bearer token and shown nowhere; None: none.
        concurrency: requests in flight at once, 1 or more.
        timeout_s: for one answer.
        max_retries: of one request, where the server is busy, restarts or does not answer in time.
        generated_only: refuse to score answers.

    Raises:
        TargetError: an argument cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        concurrency: int = 32,
        timeout_s: float = 300.0,
        max_retries: int = 8,
        generated_only: bool = False,
    ) -> None:
        if concurrency < 1:
            raise TargetError(f"--concurrency: {concurrency} requests at once; give 1 or more")
        if not timeout_s > 0:
            raise TargetError(f"--timeout-s: {timeout_s} s; give more than 0")
        if max_retries < 0:
            raise TargetError(f"--retries: {max_retries}; give 0 or more")
        try:
            base = base_url(url, "--target")
        except EndpointError as error:
            raise TargetError(str(error)) from error
        self._server = Server("--target", base, api_key, concurrency, timeout_s, max_retries)
        self._model = model
        self._generated_only = generated_only
        self._served: _Served | None = None
        self._abilities = Abilities()

    def describe(self) -> Mapping[str, object]:
        """See `Target`. Raises `TargetError` where the server does not answer."""
        served = self._known()
        return {
            "kind": "endpoint",
            "url": self._server.base,
            "model": served.name,
            "max_model_len": served.max_model_len,
            "weights": "not known: an endpoint names no digest",
        }

    def check(self, asks: Sequence[Ask]) -> None:
        check_needs(asks, generated_only=self._generated_only)
        self._known()

        async def check(session: Session) -> None:
            await survey(session, asks)
            await try_each_kind(session, asks)
            await check_consistency(session, asks)

        run_in_thread(lambda: self._with_session(check))

    def canonical(self, asks: Sequence[Ask]) -> list[Ask]:
        """Noise is the server's own: every draw is the same to it."""
        return [replace(ask, draw=0) if ask.draw else ask for ask in asks]

    def replies(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Reply]]:
        if not asks:
            return
        check_needs(asks, generated_only=self._generated_only)
        self._known()

        async def produce(put: Callable[[tuple[int, Reply]], None]) -> None:
            async def answer(session: Session) -> None:
                await survey(session, asks)
                await self._answer_all(session, asks, put)

            await self._with_session(answer)

        yield from results_of(produce)

    def close(self) -> None:
        """Nothing stays open between calls."""

    async def _answer_all(
        self, session: Session, asks: Sequence[Ask], put: Callable[[tuple[int, Reply]], None]
    ) -> None:
        async def answer(item: tuple[int, Ask]) -> None:
            number, ask = item
            put((number, await session.reply(ask)))

        await for_each(enumerate(asks), answer, min(self._server.concurrency, len(asks)))

    async def _with_session(self, use: Callable[[Session], Awaitable[T]]) -> T:
        async with self._connect() as connection:
            session = Session(connection, self._known().name, self._abilities)
            try:
                return await use(session)
            finally:
                await session.close()

    @contextlib.asynccontextmanager
    async def _connect(self) -> AsyncIterator[Connection]:
        try:
            async with self._server.connect() as connection:
                yield connection
        except EndpointError as error:
            raise TargetError(str(error)) from error

    def _known(self) -> _Served:
        if self._served is None:
            self._served = run_in_thread(self._find_model)
            self._abilities.vllm = self._served.by_vllm
        return self._served

    async def _find_model(self) -> _Served:
        async with self._connect() as connection:
            entries = await connection.models()
        found = [entry for entry in entries if self._model in (None, entry["id"])]
        if not found:
            names = ", ".join(str(entry["id"]) for entry in entries) or "none"
            raise TargetError(
                f"--model: {self._server.base} serves no model {self._model or 'at all'!r}; it lists: {names}"
            )
        context = found[0].get("max_model_len")
        return _Served(
            str(found[0]["id"]),
            context if isinstance(context, int) else None,
            found[0].get("owned_by") == "vllm",
        )
