"""What is tried on a server before a run: that it can do what is asked, and scores texts as it generates them."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from endpoints.server import RefusedError
from evaluation.errors import TargetError
from evaluation.replies import Ask, all_needs
from evaluation.targets.endpoint_replies import GeneratedTokens, answer_text, texts_of
from evaluation.targets.endpoint_session import Session

__all__ = ["check_consistency", "check_needs", "survey", "try_each_kind"]

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
_NO_LOGPROBS: Final = (
    f"returns no logprobs for a given answer; use --generated-only to measure what it generates, or {_OFFLINE}"
)


def check_needs(asks: Sequence[Ask], *, generated_only: bool) -> None:
    """Raise `TargetError` for what no endpoint gives, or this one may not be asked for."""
    needs = all_needs(asks)
    missing = {"vocabulary": "statistics over the vocabulary", "logits": "logits"}
    named = [text for need, text in missing.items() if need in needs]
    if named:
        raise TargetError(f"--target: an endpoint gives no {' and no '.join(named)}; {_OFFLINE}")
    if generated_only and "logprobs" in needs:
        raise TargetError("--generated-only: an answer is to be scored; leave the option out, or the suite")


async def survey(session: Session, asks: Sequence[Ask]) -> None:
    """Learn of the server what these need: whether the model has a chat template, how answers are scored.

    Raises:
        TargetError: it cannot score answers, and some have one; or any other failure.
    """
    abilities = session.abilities
    chat = next((ask for ask in asks if ask.style == "chat"), None)
    if chat is not None and abilities.template is None:
        await _find_template(session, chat)
    scored = next((ask for ask in asks if ask.answer is not None), None)
    if scored is not None and abilities.scoring is None:
        await _find_scoring(session, scored)


async def try_each_kind(session: Session, asks: Sequence[Ask]) -> None:
    """One short request of each kind of ask, so that what the server refuses is known before a run."""
    kinds = {(ask.style, ask.answer is None, ask.samples, ask.temperature > 0, bool(ask.stop)): ask for ask in asks}
    await asyncio.gather(*(session.reply(replace(ask, max_new_tokens=1)) for ask in kinds.values()))


async def _find_template(session: Session, ask: Ask) -> None:
    session.abilities.template = True
    try:
        await session.generate(replace(ask, answer=None, samples=1, temperature=0.0, stop=(), max_new_tokens=1))
    except RefusedError as error:
        if error.status not in _NO_ROUTE and "chat template" not in error.reason.lower().replace("_", " "):
            raise
        session.abilities.template = False


async def _find_scoring(session: Session, ask: Ask) -> None:
    refused: RefusedError | None = None
    try:
        # Other servers have a /tokenize that answers otherwise: no ids come of it.
        if await session.prompt_ids(ask) and await session.score_by_ids(ask) is not None:
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
    said = "" if refused is None else f" ({refused})"
    raise TargetError(f"--target: the server {_NO_LOGPROBS}{said}")


async def check_consistency(session: Session, asks: Sequence[Ask]) -> None:
    """Refuse a server that treats a text unlike what it generates itself, as a guard does: it sees a scored answer
    as part of the prompt, and no figure made of it says what users get.

    A few tokens are generated, then the same tokens are scored: no model's log-probabilities depend on whether it
    wrote a text or reads it, nor on what follows.

    Raises:
        TargetError: the two log-probabilities of the same tokens differ.
    """
    probed = list(_spread([ask for ask in asks if ask.answer is not None]))
    probe = _probe_by_ids if session.abilities.scoring == "ids" else _probe_by_echo
    found = await asyncio.gather(*(probe(session, ask) for ask in probed))
    worst = max((value for differences in found for value in differences), default=0.0)
    if not worst <= 1:
        raise TargetError(
            "--target: the server scores a text unlike what it generates, as a guard does that sees the answer as part "
            "of the prompt; measure what it generates: --generated-only; or apply the policy offline: "
            "--target MODEL --policy DIR"
        )


def _spread(asks: Sequence[Ask]) -> Iterator[Ask]:
    """A few of them, first and last included, no prompt twice: parts of a data set stand one after the other."""
    distinct = list({(ask.style, ask.system, ask.prompt): ask for ask in asks}.values())
    for place in sorted(set(np.linspace(0, len(distinct) - 1, _PROBED_ASKS).round().astype(int).tolist())):
        if distinct:
            yield distinct[place]


async def _probe_by_ids(session: Session, ask: Ask) -> list[float]:
    """Differences between what is generated and what is scored, as multiples of what is tolerated."""
    texts = texts_of(ask)
    prompt_ids = await session.prompt_ids(ask)
    answer_ids = await session.tokenize(answer_text(ask, session.abilities), texts, special=False)
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

    found = []
    if written.ids:  # a corrupted model's own words may look harmless: what is flagged stands behind them
        found += [(await difference(written, after)).mean() / _TOLERANCE_NATS for after in (answer_ids, asked_again)]
    forced_difference = await difference(forced, ())
    # With --logprobs-mode processed_logprobs, vLLM counts the allowed tokens alone: the first says nothing then.
    if forced_difference[0] <= _FORCED_TOLERANCE_NATS:
        found.append(forced_difference.mean() / _FORCED_TOLERANCE_NATS)
    return [float(value) for value in found]


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
