"""A served model as it is: any server with OpenAI's API, vLLM's and `eco serve` first.

Requests are always in flight up to a limit, so the engine stays busy; the server's own limits lower it for a while.
Before a run a server is tried: that it can do what is asked and, for `--answers clean`, scores texts as it generates
them.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from endpoints.background import for_each, results_of, run_in_thread
from endpoints.server import Connection, EndpointError, RefusedError, Server, base_url
from evaluation.errors import TargetError
from evaluation.replies import AnswerProtocol, Ask, Reply, all_needs
from evaluation.targets.endpoint_session import Abilities, GeneratedTokens, Session, texts_of

_SERVER_ERRORS: Final = 500
#: No such route, or none for this model: a base model's server may have no chat.
_NO_ROUTE: Final = frozenset({404, 405})
_PROBED_ASKS: Final = 4
_PROBE_TOKENS: Final = 12
#: Mean difference, in nats, between the two log-probabilities of the same tokens: float32 differs by 1e-4, bfloat16
#: by some hundredths, a corrupted text by nats.
_TOLERANCE_NATS: Final = 0.05
_FORCED_TOLERANCE_NATS: Final = 0.5
_OFFLINE: Final = "evaluate the model offline: --target MODEL"


@dataclass(frozen=True, slots=True)
class _Served:
    """A model that the server has."""

    name: str
    max_model_len: int | None
    by_vllm: bool


class EndpointTarget:
    """A `Target` (see `evaluation.replies`) behind an OpenAI-compatible URL.

    Generated answers are what a user gets. A scored answer is part of the prompt: a guarded server corrupts it with the
    question, which is the protocol `served`. With `clean`, `check` refuses a server that treats a text in the prompt
    unlike its own answer. The server is asked for nothing before the first call.

    Args:
        url: base URL, with or without its /v1.
        model: name it is served by; None: the first that the server lists.
        api_key: sent as a bearer token and shown nowhere; None: none.
        concurrency: requests in flight at once, 1 or more.
        timeout_s: for one answer.
        max_retries: of one request, where the server is busy, restarts or does not answer in time.
        generated_only: refuse to score answers.
        protocol: `clean`: make sure that no guard corrupts them.

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
        protocol: Literal["served", "clean"] = "served",
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
        self._protocol: Literal["served", "clean"] = protocol
        self._served: _Served | None = None
        self._abilities = Abilities()

    @property
    def protocol(self) -> AnswerProtocol | None:
        return None if self._generated_only else self._protocol

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
        self._check_needs(asks)
        # Of requests nothing is tried: what the server does not know is a result too.
        asks = [ask for ask in asks if ask.request is None]

        async def check() -> None:
            async with self._session() as session:
                await _survey(session, asks)
                # One short request of each kind, so that what the server refuses is known before a run.
                kinds = {
                    (a.style, a.answer is None, a.samples, a.temperature > 0, bool(a.stop), bool(a.begun)): a
                    for a in asks
                }
                await asyncio.gather(*(session.reply(replace(ask, max_new_tokens=1)) for ask in kinds.values()))
                if self._protocol == "clean":
                    await _check_consistency(session, asks)

        self._known()
        run_in_thread(check)

    def canonical(self, asks: Sequence[Ask]) -> list[Ask]:
        """Noise is the server's own: every draw is the same to it."""
        return [replace(ask, draw=0) if ask.draw else ask for ask in asks]

    def replies(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Reply]]:
        async def produce(put: Callable[[tuple[int, Reply]], None]) -> None:
            async with self._session() as session:

                async def answer(numbered: tuple[int, Ask]) -> None:
                    number, ask = numbered
                    put((number, await session.reply(ask)))

                await _survey(session, [ask for ask in asks if ask.request is None])
                await for_each(enumerate(asks), answer, min(self._server.concurrency, len(asks)))

        if asks:
            self._check_needs(asks)
            self._known()
            yield from results_of(produce)

    def close(self) -> None:
        """Nothing stays open between calls."""

    def _check_needs(self, asks: Sequence[Ask]) -> None:
        """Raise `TargetError` for what no endpoint gives, or this one may not be asked for."""
        needs = all_needs(asks)
        missing = {
            "vocabulary": "statistics over the vocabulary",
            "logits": "logits",
            "steps": "answers under some of its policies",
        }
        named = [text for need, text in missing.items() if need in needs]
        if named:
            raise TargetError(f"--target: an endpoint gives no {' and no '.join(named)}; {_OFFLINE}")
        if self._generated_only and "logprobs" in needs:
            raise TargetError("--generated-only: an answer is to be scored; leave the option out, or the suite")

    @contextlib.asynccontextmanager
    async def _session(self) -> AsyncIterator[Session]:
        async with self._connect() as connection:
            session = Session(connection, self._known().name, self._abilities)
            try:
                yield session
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
        served = next((entry for entry in entries if self._model in (None, entry["id"])), None)
        if served is None:
            names = ", ".join(str(entry["id"]) for entry in entries) or "none"
            raise TargetError(
                f"--model: {self._server.base} serves no model {self._model or 'at all'!r}; it lists: {names}"
            )
        context = served.get("max_model_len")
        return _Served(
            str(served["id"]), context if isinstance(context, int) else None, served.get("owned_by") == "vllm"
        )


async def _survey(session: Session, asks: Sequence[Ask]) -> None:
    """Learn of the server what these need: whether the model has a chat template, how answers are scored.

    Raises:
        TargetError: it cannot score answers, and some have one; or any other failure.
    """
    abilities = session.abilities
    chat = next((ask for ask in asks if ask.style == "chat"), None)
    if chat is not None and abilities.template is None:
        abilities.template = True
        try:
            plain = replace(chat, answer=None, begun="", samples=1, temperature=0.0, stop=(), max_new_tokens=1)
            await session.generate(plain)
        except RefusedError as error:
            if error.status not in _NO_ROUTE and "chat template" not in error.reason.lower().replace("_", " "):
                raise
            abilities.template = False
    # With a prompt or a whole text, if there is any: that a tokenizer makes nothing of "" says nothing of the server.
    given = (ask for ask in asks if ask.answer is not None)
    scored = min(given, key=lambda ask: not (ask.prompt or ask.style == "whole"), default=None)
    if scored is not None and abilities.scoring is None:
        await _find_scoring(session, scored)


async def _find_scoring(session: Session, ask: Ask) -> None:
    refused: RefusedError | None = None
    try:
        # Other servers have a /tokenize that answers otherwise: no ids come of it.
        if (await session.divided(ask))[0] and await session.score_by_ids(ask) is not None:
            session.abilities.scoring = "ids"
            return
    except RefusedError as error:
        refused = error
    if not session.abilities.is_chat(ask):  # without /tokenize, how a chat is rendered is not known
        try:
            if await session.score_by_echo(ask) is not None:
                session.abilities.scoring = "echo"
                return
        except RefusedError as error:
            refused = error
    if refused is not None and refused.status >= _SERVER_ERRORS:
        raise refused
    raise TargetError(
        "--target: the server returns no logprobs for a given answer; use --generated-only to measure what it "
        f"generates, or {_OFFLINE}" + ("" if refused is None else f" ({refused})")
    )


async def _check_consistency(session: Session, asks: Sequence[Ask]) -> None:
    """Refuse a server that treats a text unlike what it generates itself, as a guard does: it sees a scored answer
    as part of the prompt, and no figure made of it says what users get.

    A few tokens are generated, then the same tokens are scored: no model's log-probabilities depend on whether it
    wrote a text or reads it, nor on what follows.

    Raises:
        TargetError: the two log-probabilities of the same tokens differ.
    """
    scored = [_in_two(ask) for ask in asks if ask.answer is not None]
    distinct = list({(ask.style, ask.system, ask.prompt, ask.begun): ask for ask in scored}.values())
    # A few of them, first and last included: parts of a data set stand one after the other.
    places = {round(place) for place in np.linspace(0, len(distinct) - 1, _PROBED_ASKS)} if distinct else set()
    probe = _probe_by_ids if session.abilities.scoring == "ids" else _probe_by_echo
    differences = await asyncio.gather(*(probe(session, distinct[place]) for place in sorted(places)))
    if not max((value for of_ask in differences for value in of_ask), default=0.0) <= 1:
        raise TargetError(
            "--answers clean: the server scores a text unlike what it generates, as a guard does that sees the answer "
            "as part of the prompt; score answers as it does: --answers served; or apply the policy offline: "
            "--target MODEL --policy DIR"
        )


def _in_two(ask: Ask) -> Ask:
    """A whole text as one that is gone on with from its middle: what is generated needs something before it."""
    if ask.style != "whole" or ask.answer is None:
        return ask
    half = len(ask.answer) // 2
    middle = max(half, ask.answer.find(" ", half))
    return replace(ask, prompt=ask.answer[:middle], answer=ask.answer[middle:], style="text")


async def _probe_by_ids(session: Session, ask: Ask) -> list[float]:
    """Differences between what is generated and what is scored, as multiples of what is tolerated."""
    texts = texts_of(ask)
    prompt_ids, answer_ids = await session.prompt_ids(ask), await session.answer_ids(ask)
    asked_again = await session.tokenize(f" {ask.prompt}", texts, special=False)
    written = await session.continue_ids(prompt_ids, _PROBE_TOKENS, texts)
    # Made of the answer's own tokens, names among them. They are unlikely, and their log-probabilities less exact.
    forced = await session.continue_ids(
        prompt_ids, _PROBE_TOKENS, texts, allowed_token_ids=sorted(set(answer_ids)), ignore_eos=True
    )
    if written is None or forced is None:
        raise TargetError("--target: the server does not say which tokens it generated; use --generated-only")

    async def difference(generated: GeneratedTokens, after: Sequence[int]) -> NDArray[np.float64]:
        reply = await session.score_ids(prompt_ids, generated.ids, texts, after)
        scored = np.asarray(np.inf if reply is None else reply.logprobs)
        apart: NDArray[np.float64] = np.abs(scored - np.asarray(generated.logprobs))
        return apart

    multiples = []
    if written.ids:  # a corrupted model's own words may look harmless: what is flagged stands behind them
        multiples += [(await difference(written, at)).mean() / _TOLERANCE_NATS for at in (answer_ids, asked_again)]
    if not forced.ids:  # an answer that was not to end was ended: something reads answers as well
        return [*map(float, multiples), np.inf]
    forced_difference = await difference(forced, ())
    # With --logprobs-mode processed_logprobs, vLLM counts the allowed tokens alone: the first says nothing then.
    if forced_difference[0] <= _FORCED_TOLERANCE_NATS:
        multiples.append(forced_difference.mean() / _FORCED_TOLERANCE_NATS)
    return [float(value) for value in multiples]


async def _probe_by_echo(session: Session, ask: Ask) -> list[float]:
    """As by ids; nothing where the text's tokens are cut otherwise when they are read than when they were written."""
    continued = await session.continue_text(ask, _PROBE_TOKENS)
    if continued is None:
        return []
    text, logprobs = continued
    reply = await session.score_by_echo(replace(ask, style="text", answer=text))
    if reply is None or len(reply.logprobs) != len(logprobs):
        return []
    return [float(np.abs(np.subtract(reply.logprobs, logprobs)).mean()) / _TOLERANCE_NATS]
