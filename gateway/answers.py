"""Answers on their way from the engine to the client: nothing leaves that the guard has not passed (vLLM 0.32).

Outputs that are not touched are the engine's own objects in the engine's order: for innocent requests nothing differs
but that a chunk may leave some tokens later. Where an answer gives away what a policy forgets, what of it is held is
dropped, and it goes on from a corrupted prompt, or ends as that of a model which has no more to say.
"""

import contextlib
import copy
import functools
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any

from vllm.exceptions import GracefulHTTPError
from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from gateway.audit import Audit
from gateway.metrics import GuardMetrics
from gateway.mixed import mixed_prompt
from gateway.protector import Protector
from gateway.tracing import UNTRACED, RequestTrace
from guard import Guard, GuardError, ProtectedPrompt, Verdict
from guard.answers import AnswerGuard, AnswerWatch, Hit

logger = logging.getLogger("vllm.eco_gateway")  # under vLLM's own logging configuration

_RESTARTS = 2
_SEEDS = 1 << 62  # engines keep them in 64 bits, and end of one that is larger
_SEED_STEP = 1_000_003  # further from an answer's first seed than those of its neighbours are
#: Tokens of an answer that has left which are read again with what follows.
_READ_AGAIN = 128
#: Tokens of a chunk that are read at a time: what a look sees of an answer is its last words.
_READ_TOKENS = 16
#: Places of a whole answer whose alternatives are judged; of any further none that says anything is told.
_JUDGED_PLACES = 64
# Estimates, in microseconds.
_LOOK_US, _CORRUPTION_US, _TOKEN_US, _ALTERNATIVE_US = 2_000, 20_000, 20, 50


@dataclass(frozen=True)
class Request:
    """One request to the engine, as its client made it.

    Attributes:
        prompt: the engine input that came: token ids, and a cache salt perhaps.
        served: the one that is served in its place.
        mask: which of the prompt's tokens the model does not see; None where it sees all.
        guard: with the policies that apply to it, of which some read answers.
        options: keyword arguments of vLLM's `generate`.
        is_text: the prompt is nothing but tokens, and can be corrupted.
        tenant: whose it is, where that is known.
        trace: told what the guard does with its answers.
        forgets: policies, by number, that the prompt is known to be about.
    """

    prompt: Mapping[str, Any]
    served: Any
    mask: Sequence[bool] | None
    guard: Guard
    params: SamplingParams
    request_id: str
    options: Mapping[str, Any]
    is_text: bool = True
    tenant: str | None = None
    trace: RequestTrace = UNTRACED
    forgets: Sequence[int] = ()

    def watch(self, answer: Sequence[int] = ()) -> AnswerWatch:
        """Of one of its answers, of which some tokens may have left that are read with what follows."""
        if answer:
            return self.answers.watch(self.token_ids, self.mask, answer, self.forgets)
        return self._unread.copy()

    @functools.cached_property
    def _unread(self) -> AnswerWatch:
        """The prompt is read once, however many answers it has."""
        return self.answers.watch(self.token_ids, self.mask, forgets=self.forgets)

    @property
    def answers(self) -> AnswerGuard:
        assert self.guard.answers is not None
        return self.guard.answers

    @property
    def token_ids(self) -> list[int]:
        ids: list[int] = self.prompt["prompt_token_ids"]
        return ids

    @property
    def is_constrained(self) -> bool:
        """The client says which tokens may come. A restart begins that anew, whatever has left already."""
        params = self.params
        return bool(params.structured_outputs or params.allowed_token_ids or params.logit_bias)

    @property
    def lags(self) -> bool:
        """Tokens without text are no part of a character: vLLM holds text back that may begin a stop string, or makes
        none at all."""
        params = self.params
        return not params.detokenize or (bool(params.stop) and not params.include_stop_str_in_output)


@dataclass
class _Choice:
    """One of a request's answers.

    Attributes:
        held: what has not left, oldest first, each with the output that it came in.
        left: token ids that have left.
        text: their text, as far as it has left.
        has_left: some of it has, be it an empty chunk.
        hit: set where it must not go on as it is.
    """

    index: int
    watch: AnswerWatch
    held: list[tuple[RequestOutput, CompletionOutput]] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    text: str = ""
    hit: Hit | None = None
    restarts: int = 0
    has_left: bool = False
    is_done: bool = False


class GuardedAnswers:
    """Runs requests and guards their answers.

    Args:
        engine: vLLM's own client.
        audit: told of answers that gave something away.
        eos: token that ends an answer.
        decode: token ids -> text, as the client gets it.
        tells: an answer that is ended says `content_filter`, instead of reading like one that stopped.
    """

    def __init__(
        self,
        engine: Any,
        protector: Protector,
        metrics: GuardMetrics,
        audit: Audit,
        *,
        eos: int | None,
        decode: Callable[[Sequence[int]], str],
        tells: bool = False,
    ) -> None:
        self._engine = engine
        self._protector = protector
        self._metrics = metrics
        self._audit = audit
        self._eos = eos
        self._decode = decode
        self._finish_reason = "content_filter" if tells else "stop"

    async def run(self, request: Request) -> AsyncGenerator[RequestOutput, None]:
        """The outputs of a request, as of vLLM's `generate`.

        Raises:
            GracefulHTTPError: 503; the guard failed, and a policy says that nothing may leave then.
        """
        streams = request.params.output_kind == RequestOutputKind.DELTA
        async with contextlib.aclosing(self._streamed(request) if streams else self._whole(request)) as outputs:
            async for output in outputs:
                yield output

    async def _whole(self, request: Request) -> AsyncGenerator[RequestOutput, None]:
        """The answers of a client that gets them once they are complete."""
        if request.params.output_kind != RequestOutputKind.FINAL_ONLY:
            params = copy.copy(request.params)
            params.output_kind = RequestOutputKind.FINAL_ONLY
            request = replace(request, params=params)
        output = await self._final(request)
        if output is None:
            return
        output.outputs = [await self._judged(request, completion) for completion in output.outputs]
        await self._withhold_from_prompt(request, output)
        yield output

    async def _final(self, request: Request) -> RequestOutput | None:
        final = None
        stream = self._engine.generate(request.served, request.params, request.request_id, **request.options)
        async with contextlib.aclosing(stream) as outputs:
            async for output in outputs:
                final = output
        return final

    async def _judged(self, request: Request, completion: CompletionOutput) -> CompletionOutput:
        """A complete answer, or what is given in its place."""
        index, restarts, asked = completion.index, 0, request
        watch = request.watch()
        while (hit := await self._hit_of(request, watch, completion.token_ids)) is not None:
            again = await self._restarted(request, hit, index, restarts, forgets=asked.forgets)
            output = await self._final(again) if again is not None else None
            if again is None or output is None:
                self._count(request, watch, "ended", hit)
                return self._end(request, index)
            restarts, asked = restarts + 1, again
            self._hit(request, hit.policy, "restart", hit.score)
            completion = output.outputs[0]
            completion.index = index
            watch = self._following(again, watch)
        self._count(request, watch, "restarted" if restarts else "passed")
        if completion.logprobs is not None:
            fresh = asked.watch().of_alternatives()
            completion.logprobs = await self._withhold(request, fresh, completion.token_ids, completion.logprobs)
        return completion

    async def prompt_after_beams(
        self, guard: Guard, prompt: ProtectedPrompt, output: RequestOutput, *, last: bool = False
    ) -> ProtectedPrompt | None:
        """Judge the answers of a beam search, which leave together.

        Of alternatives, those that would not have left are taken out. Where an answer gives something away: the prompt
        to search anew with; or None and every answer is taken out, where a policy says so, or for the `last` time.

        Raises:
            GracefulHTTPError: 503; as `run`.
        """
        params = SamplingParams(logprobs=1)  # beams have them
        asked = {"prompt_token_ids": prompt.token_ids}
        forgets = guard.answers.corrupting(prompt.flagged) if guard.answers is not None else ()
        request = Request(asked, None, prompt.mask, guard, params, "", {}, forgets=forgets)
        for completion in output.outputs:
            watch = request.watch()
            if (hit := await self._hit_of(request, watch, completion.token_ids)) is not None:
                again = await self._forgotten(request, hit) if not (last or hit.ends) else None
                if again is None:
                    self._count(request, watch, "ended", hit)
                    output.outputs = [self._end(request, number) for number in range(len(output.outputs))]
                else:
                    self._hit(request, hit.policy, "restart", hit.score)
                    found = Verdict(request.answers.names[hit.policy], "corrupt", flagged=True, score=hit.score)
                    again = replace(again, verdicts=(*prompt.flagged, found))
                return again
            if completion.logprobs is not None:
                fresh = request.watch().of_alternatives()
                completion.logprobs = await self._withhold(request, fresh, completion.token_ids, completion.logprobs)
            self._count(request, watch, "restarted" if last else "passed")
        return None

    async def _streamed(self, request: Request) -> AsyncGenerator[RequestOutput, None]:
        """The answers of a client that gets them as they come."""
        choices = [_Choice(index, request.watch()) for index in range(request.params.n)]
        first: RequestOutput | None = None
        stream = self._engine.generate(request.served, request.params, request.request_id, **request.options)
        async with contextlib.aclosing(stream) as outputs:
            async for output in outputs:
                first = first or output
                await self._withhold_from_prompt(request, output)  # each choice brings the prompt's
                for completion in output.outputs:
                    choice = choices[completion.index]
                    if choice.hit is None and not choice.is_done:
                        await self._take(request, choice, output, completion)
                        for leaving in self._leaving(request, choice, choices):
                            yield leaving
                hit = any(choice.hit is not None for choice in choices)
                if hit and all(choice.is_done or choice.hit is not None for choice in choices):
                    break  # which aborts what still runs
        for choice in choices:
            if choice.hit is not None and first is not None:
                async with contextlib.aclosing(self._going_on(request, choice, choices, first)) as rest:
                    async for output in rest:
                        yield output

    async def _going_on(
        self, request: Request, choice: _Choice, choices: Sequence[_Choice], first: RequestOutput
    ) -> AsyncGenerator[RequestOutput, None]:
        """What comes in place of the rest of a choice: an answer to a corrupted prompt, or an end."""
        forgets = request.forgets
        while (hit := choice.hit) is not None:
            begun = bool(choice.left)
            lost = self._unsaid(request, choice)
            room = request.params.max_tokens is None or len(choice.left) < request.params.max_tokens
            stuck = lost is None or not room or (begun and request.is_constrained)
            again = None
            if not stuck:
                again = await self._restarted(request, hit, choice.index, choice.restarts, choice.left, forgets=forgets)
            if again is None:
                self._count(request, choice.watch, "ended", hit)
                choice.is_done, choice.hit = True, None
                yield self._as_of(first, self._end(request, choice.index, begun=begun), choice, choices)
                return
            choice.restarts, forgets = choice.restarts + 1, again.forgets
            self._hit(request, hit.policy, "restart", hit.score)
            unseen = again.mask[len(request.token_ids) :] if again.mask is not None else []
            seen = [token for token, masked in zip(choice.left, unseen, strict=True) if not masked]
            choice.watch, choice.hit = self._following(again, choice.watch, seen[-_READ_AGAIN:]), None
            stream = self._engine.generate(again.served, again.params, again.request_id, **again.options)
            async with contextlib.aclosing(stream) as outputs:
                async for output in outputs:
                    completion = output.outputs[0]
                    completion.index = choice.index
                    if lost and completion.text:
                        completion.text, lost = lost + completion.text, ""
                    await self._take(request, choice, self._as_of(first, completion, choice, choices), completion)
                    for leaving in self._leaving(request, choice, choices):
                        yield leaving
                    if choice.hit is not None:
                        break

    async def _take(
        self, request: Request, choice: _Choice, output: RequestOutput, completion: CompletionOutput
    ) -> None:
        """Read what has come, hold it, and look at the answer where it has to be looked at."""
        done, ids, watch = completion.finish_reason is not None, list(completion.token_ids), choice.watch
        choice.held.append((output, completion))
        if completion.logprobs is not None and any(len(position) > 1 for position in completion.logprobs):
            completion.logprobs = await self._withhold(request, watch, ids, completion.logprobs, adds=False)
        for start in range(0, max(len(ids), 1), _READ_TOKENS):
            few = ids[start : start + _READ_TOKENS]
            if watch.add(few, done=done and start + len(few) == len(ids)):
                choice.hit = await self._work(request, watch, watch.look(), _LOOK_US)
                if choice.hit is not None:
                    choice.held.clear()
                    return

    def _leaving(self, request: Request, choice: _Choice, choices: Sequence[_Choice]) -> Iterator[RequestOutput]:
        """What of a choice may leave, oldest first."""
        tokens = sum(len(completion.token_ids) for _, completion in choice.held)
        complete = any(completion.finish_reason is not None for _, completion in choice.held)
        while choice.held:
            output, completion = choice.held[0]
            done, size = completion.finish_reason is not None, len(completion.token_ids)
            if not complete and tokens - size < choice.watch.hold:
                return
            if not complete and size and not request.lags and not any(one.text for _, one in choice.held):
                return  # within a character, where no answer can be restarted
            choice.held.pop(0)
            tokens -= size
            choice.left += completion.token_ids
            choice.text += completion.text
            if done:
                choice.is_done = True
                self._count(request, choice.watch, "restarted" if choice.restarts else "passed")
            if len(output.outputs) > 1 or output.finished != all(one.is_done for one in choices):
                output = self._as_of(output, completion, choice, choices)
            choice.has_left = True
            yield output

    @staticmethod
    def _as_of(
        output: RequestOutput, completion: CompletionOutput, choice: _Choice, choices: Sequence[_Choice]
    ) -> RequestOutput:
        """An output like another, with one answer."""
        output = copy.copy(output)
        output.outputs, output.finished = [completion], all(choice.is_done for choice in choices)
        if choice.has_left and output.prompt_logprobs is not None:
            output.prompt_logprobs = []  # they leave with the first of it
        return output

    def _unsaid(self, request: Request, choice: _Choice) -> str | None:
        """Text of tokens that have left which vLLM still held back; None where a character is not complete."""
        if not request.lags or not choice.left:
            return ""
        text = self._decode(choice.left)
        if not text.startswith(choice.text) or text.endswith("\ufffd"):
            return None
        return text[len(choice.text) :]

    async def _restarted(
        self,
        request: Request,
        hit: Hit,
        index: int,
        restarts: int,
        left: Sequence[int] = (),
        *,
        forgets: Sequence[int],
    ) -> Request | None:
        """The request for the rest of one answer, of which `left` has left, with nothing to forget in its prompt. None
        where it is to end: as the policy says, after enough restarts, or since a prompt without content would be
        answered the same again. `forgets`: what its watch knew the prompt to be about.

        Raises:
            GracefulHTTPError: it could not be made.
        """
        if hit.ends or not request.is_text or restarts == _RESTARTS:
            return None
        safe = await self._forgotten(request, hit, left)
        if safe is None or safe.mask is None:
            return None
        served = mixed_prompt(safe, {"cache_salt": request.prompt.get("cache_salt")})
        params = copy.deepcopy(request.params)
        params.n = 1
        params.prompt_logprobs = None
        params.min_tokens = max(0, params.min_tokens - len(left))
        if params.max_tokens is not None:
            params.max_tokens -= len(left)
        if params.seed is not None:
            params.seed = (params.seed + index + _SEED_STEP * (restarts + 1)) % _SEEDS
        known = sorted({*forgets, hit.policy})
        return replace(request, served=served, mask=safe.mask, params=params, forgets=known)

    async def _forgotten(self, request: Request, hit: Hit, left: Sequence[int] = ()) -> ProtectedPrompt | None:
        def work() -> Generator[int, None, ProtectedPrompt]:
            unseen = request.answers.telling_tokens(left)
            yield _CORRUPTION_US
            return (yield from request.guard.forgotten(request.token_ids, left, unseen, hit.policy))

        try:
            safe: ProtectedPrompt = await self._protector.work(work(), _CORRUPTION_US + _TOKEN_US * len(left))
        except GuardError as error:
            raise self._failed(error) from error
        return None if safe.mask is None else safe

    def _following(self, again: Request, watch: AnswerWatch, seen: Sequence[int] = ()) -> AnswerWatch:
        """The watch of an answer that was restarted: what the model saw of it is read on with the rest."""
        following = again.watch(seen)
        following.observed, following.looks = watch.observed, watch.looks
        return following

    def _end(self, request: Request, index: int, *, begun: bool = False) -> CompletionOutput:
        """An end, with a token where nothing has left: vLLM's routes drop a choice's only chunk that is empty."""
        ids = [] if begun or self._eos is None else [self._eos]
        said, total = None, None
        if request.params.logprobs is not None or request.params.logprob_token_ids is not None:
            said, total = [{token: Logprob(0.0, 1, "")} for token in ids], 0.0
        return CompletionOutput(index, "", ids, total, said, finish_reason=self._finish_reason)

    async def _hit_of(self, request: Request, watch: AnswerWatch, token_ids: Sequence[int]) -> Hit | None:
        return await self._work(request, watch, watch.whole(token_ids), _LOOK_US + _TOKEN_US * len(token_ids))

    async def _work(self, request: Request, watch: AnswerWatch, work: Any, expected_us: int) -> Hit | None:
        """What a look found. One that failed has found something, or nothing may leave; where policies but observe, it
        has found nothing."""
        started = time.perf_counter()
        try:
            hit: Hit | None = await self._protector.work(work, expected_us)
        except GuardError as error:
            return self._missed(watch.guard, error)
        finally:
            request.trace.asked(time.perf_counter() - started)
        return hit

    def _missed(self, answers: AnswerGuard, error: GuardError) -> Hit | None:
        if answers.rejects_on_error:
            raise self._failed(error) from error
        self._metrics.answer_failed(error)
        if not answers.enforces:
            return None
        return Hit(answers.first, float("nan"), ends=bool((answers.ends & answers.reads).any()))

    def _failed(self, error: GuardError) -> GracefulHTTPError:
        logger.error("answer broken off: %s (%s)", error, type(error.__cause__).__name__)
        self._audit.event("failed", reason=str(error), cause=type(error.__cause__).__name__)
        self._metrics.answer_failed(error)
        self._metrics.answered("failed", 0)
        message = "The answer could not be checked. Please try again later."
        return GracefulHTTPError(message, HTTPStatus.SERVICE_UNAVAILABLE)

    def _count(self, request: Request, watch: AnswerWatch, outcome: str, hit: Hit | None = None) -> None:
        self._metrics.answered(outcome, watch.looks)
        request.trace.answered(outcome)
        for policy in watch.observed:
            self._hit(request, policy, "observe", None)
        if hit is not None:
            self._hit(request, hit.policy, "end", hit.score)

    def _hit(self, request: Request, policy: int, action: str, score: float | None) -> None:
        name = request.answers.names[policy]
        self._metrics.answer_hit(name, action, request.tenant)
        known = score if score is not None and math.isfinite(score) else None
        request.trace.hit(name, action, known)
        self._audit.event(
            "answer",
            request=request.request_id,
            tenant=request.tenant,
            policy=name,
            digest=request.guard.policies[policy].bundle.digest,
            action=action,
            score=None if known is None else round(known, 6),
        )

    async def _withhold(
        self, request: Request, watch: AnswerWatch, token_ids: Sequence[int], logprobs: Any, *, adds: bool = True
    ) -> Any:
        """The logprobs of some tokens without the alternatives that would not have left: where the client steers, all
        that would be looked at. Where they could not be judged, without all of them, or nothing may leave.

        Args:
            watch: of what is before the tokens. It reads them too, or with `adds=False` a copy of it does.
        """
        if not request.answers.enforces:
            return logprobs
        reader = watch if adds else watch.of_alternatives()

        def work() -> Generator[int, None, list[Any]]:
            positions, judged = [], 0
            for number, token in enumerate(token_ids):
                position = logprobs[number]
                telling = reader.telling([other for other in position or () if other != token])
                if telling:
                    judged += 1
                    strict = request.is_constrained or judged > _JUDGED_PLACES
                    gone = set(telling) if strict else (yield from reader.give_away(telling))
                    position = {other: logprob for other, logprob in position.items() if other not in gone}
                positions.append(position)
                reader.add([token])
                yield (len(token_ids) - number) * _TOKEN_US
            return positions

        alternatives = sum(len(position or ()) for position in logprobs)
        try:
            found: list[Any] = await self._protector.work(work(), _LOOK_US + _ALTERNATIVE_US * alternatives)
        except GuardError as error:
            self._missed(request.answers, error)
            return [position and {token: position[token]} for token, position in zip(token_ids, logprobs, strict=False)]
        return found

    async def _withhold_from_prompt(self, request: Request, output: RequestOutput) -> None:
        """A prompt has alternatives too."""
        if output.prompt_logprobs and len(output.prompt_logprobs) == len(request.token_ids):
            output.prompt_logprobs = await self._withhold(
                request, request.answers.watch(), request.token_ids, output.prompt_logprobs
            )
