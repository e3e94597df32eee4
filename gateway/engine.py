"""The engine wrapper: the one choke point; with `answers` and `mixed` all that touches vLLM's internals but starting
processes (vLLM 0.32).

Every generating route of vLLM's server ends in `EngineClient.generate` with a rendered prompt. The wrapper
protects that prompt and passes it on; whatever else could reach the model is refused, and only an explicit
list of attributes is delegated.
"""

import contextlib
import functools
import logging
import time
import uuid
from argparse import Namespace
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NoReturn

import torch
from vllm.distributed.parallel_state import get_pp_group
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin
from vllm.entrypoints.launchers.cli_args import propagate_flash_late_interaction
from vllm.exceptions import GracefulHTTPError, VLLMValidationError
from vllm.inputs.engine import embeds_input, tokens_input
from vllm.lora.layers import VocabParallelEmbeddingWithLoRA
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine import async_llm
from vllm.v1.engine.exceptions import EngineDeadError

from gateway import SelfTestError
from gateway.answers import GuardedAnswers, Request
from gateway.audit import Audit
from gateway.engine_config import created_config, said_in_one_line
from gateway.metrics import GuardMetrics
from gateway.mixed import mixed_prompt
from gateway.policies.active import ActivePolicies
from gateway.protector import Protector
from gateway.scheduling import QueueFullError
from gateway.tracing import UNTRACED, RequestTrace, Tracing
from gateway.traffic import Refusal, Traffic, current_arrival, current_tenant
from guard import Guard, GuardError, ProtectedPrompt

logger = logging.getLogger("vllm.eco_gateway")  # under vLLM's own logging configuration

WORKER_EXTENSION = f"{__name__}.EcoWorkerExtension"

#: What the engine's processes get to end once nothing is left to do. Its workers would take all that they are given.
_ENGINE_STOP_S = 5.0
#: Parameters by which a client says which tokens may come.
_STEERING_PARAMS = ("structured_outputs", "allowed_token_ids", "logit_bias", "trace_decode_token_ids")
#: Parameters by which a client would move KV blocks or encoder outputs between engines: external caches may key
#: on token ids, which say nothing about the rows under a mask.
_TRANSFER_ARGS = ("kv_transfer_params", "ec_transfer_params")


class EcoWorkerExtension:
    """Methods vLLM mixes into every worker (`--worker-extension-cls`, its supported way in)."""

    def eco_input_rows(self, token_ids: list[int]) -> dict[str, Any]:
        """What this worker's model embeds for `token_ids`: (T, D) rows as nested lists, and facts about the model.

        Safe under tensor parallelism: called on all workers at once, as the embedding's all-reduce needs.
        """
        model = self.model_runner.get_model()  # type: ignore[attr-defined]
        device = self.device  # type: ignore[attr-defined]
        raw_ids = bool(getattr(model, "requires_raw_input_tokens", False))
        # Around the embedding, LoRA maps the tokens of a whole step, and mixed prompts embed some of them: the
        # engine dies of the first flagged prompt.
        if any(isinstance(module, VocabParallelEmbeddingWithLoRA) for module in model.modules()):
            return {"rows": None, "raw_ids": raw_ids, "lora_embedding": True}
        if not get_pp_group().is_first_rank:  # later stages of a pipeline get hidden states, and embed nothing
            return {"rows": None, "raw_ids": raw_ids, "lora_embedding": False}
        with torch.inference_mode():
            rows = model.embed_input_ids(torch.tensor(token_ids, dtype=torch.long, device=device))
        return {"rows": rows.float().cpu().tolist(), "raw_ids": raw_ids, "lora_embedding": False}


async def input_rows(engine: Any, token_ids: list[int]) -> tuple[torch.Tensor, bool]:
    """(T, D) float32 rows as every engine embeds `token_ids`, and whether its model also reads the raw ids.

    Raises:
        SelfTestError: the workers, of whatever rank, do not agree, or LoRA covers the embedding.
    """
    # `AsyncLLM.collective_rpc` asks every data-parallel engine too, but returns the answer of the first alone.
    engines = await engine.engine_core.call_utility_all_async(
        "collective_rpc", "eco_input_rows", None, (token_ids,), None
    )
    if len(engines) != len(data_parallel_ranks(engine)):
        raise SelfTestError("some data-parallel engines cannot be reached from this front end")
    answers = [answer for workers in engines for answer in workers]
    if any(answer["lora_embedding"] for answer in answers):
        raise SelfTestError("LoRA covers the embedding layer; give --lora-target-modules without it")
    rows = [torch.tensor(answer["rows"], dtype=torch.float32) for answer in answers if answer["rows"] is not None]
    if any(not torch.equal(rows[0], other) for other in rows[1:]):
        raise SelfTestError("the engine's workers embed the same tokens differently")
    return rows[0], any(answer["raw_ids"] for answer in answers)


def data_parallel_ranks(engine: Any) -> range:
    """The ranks that `generate` takes: one for each engine this front end sends requests to."""
    parallel = engine.vllm_config.parallel_config
    return range(parallel.data_parallel_size_local if parallel.local_engines_only else parallel.data_parallel_size)


async def greedy(
    engine: Any,
    token_ids: list[int],
    *,
    max_tokens: int,
    rank: int = 0,
    embeddings: torch.Tensor | None = None,
    mask: list[bool] | None = None,
) -> list[tuple[int, float]]:
    """Greedy (token id, logprob) pairs from ids, or from `embeddings` (T, D) where `mask` (T,) is True.

    Args:
        rank: the data-parallel engine that computes them.
    """
    prompt: Any
    if embeddings is None or mask is None:
        prompt = tokens_input(token_ids)
    else:
        prompt = embeds_input(embeddings, prompt_token_ids=token_ids, is_token_ids=[not masked for masked in mask])
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, logprobs=1, ignore_eos=True, detokenize=False)
    final = None
    request_id = f"eco-self-test-{uuid.uuid4().hex}"
    async for output in engine.generate(prompt, params, request_id, data_parallel_rank=rank):
        final = output
    completion = final.outputs[0]  # type: ignore[union-attr]
    return [
        (token, table[token].logprob) for token, table in zip(completion.token_ids, completion.logprobs, strict=True)
    ]


@contextlib.asynccontextmanager
async def open_engine(args: Namespace, client: Mapping[str, Any] | None = None) -> AsyncIterator[Any]:
    """Start the engine as vLLM's own server does, with prompt embeddings on in the engine and off in front of it.

    A client's own `prompt_embeds` would walk around the classifier. With the feature off in this process' model
    config, vLLM refuses them before parsing, and the text `<prompt_embeds>` stays the ordinary text it is in
    plain vLLM.

    Args:
        client: where engines that run already are to be reached, and which of their clients this one is; as vLLM
            gives it to one of several front ends.
    """
    engine_args = AsyncEngineArgs.from_cli_args(args)
    propagate_flash_late_interaction(args, engine_args)
    addresses = dict(client or {})
    count, index = addresses.pop("client_count", 1), addresses.pop("client_index", 0)
    if client:
        engine_args._api_process_count, engine_args._api_process_rank = count, index
    config = created_config(engine_args, fitted=client is None)
    engine: Any = None
    try:
        with _renderer_without_prompt_embeds(), said_in_one_line():
            engine = async_llm.AsyncLLM.from_vllm_config(
                vllm_config=config,
                usage_context=UsageContext.OPENAI_API_SERVER,
                enable_log_requests=engine_args.enable_log_requests,
                aggregate_engine_logging=engine_args.aggregate_engine_logging,
                disable_log_stats=engine_args.disable_log_stats,
                client_addresses=addresses or None,
                client_count=count,
                client_index=index,
            )
        config.model_config.enable_prompt_embeds = False  # the engine's process has its own copy by now
        await engine.reset_mm_cache()
        yield engine
    finally:
        if engine is not None:
            engine.shutdown(timeout=config.shutdown_timeout)


@contextlib.contextmanager
def _renderer_without_prompt_embeds() -> Iterator[None]:
    """The renderer reserves `<prompt_embeds>` in its tokenizer when it is built, before the engine starts."""
    original = async_llm.renderer_from_config

    def build(config: Any, **options: Any) -> Any:
        config.model_config.enable_prompt_embeds = False
        try:
            return original(config, **options)
        finally:
            config.model_config.enable_prompt_embeds = True

    async_llm.renderer_from_config = build
    try:
        yield
    finally:
        async_llm.renderer_from_config = original


@dataclass(slots=True)
class _BeamScope:
    """One beam search: the first call is the prompt and fixes the verdict; later calls extend it by generation."""

    prompt: ProtectedPrompt | None = None
    guard: Guard | None = None


#: Set only while vLLM's own beam search runs, which a client cannot imitate: request ids are the client's to choose.
_beam: ContextVar[_BeamScope | None] = ContextVar("eco_beam", default=None)


def _scope_beam_search() -> None:
    original = BeamSearchOnlineMixin.beam_search
    if hasattr(original, "__wrapped__"):
        return

    async def scoped(scope: _BeamScope, outputs: AsyncGenerator[RequestOutput, None]) -> RequestOutput | None:
        """The one output of a beam search."""
        token = _beam.set(scope)  # the tasks that it makes inherit it; nothing outlives it
        try:
            async with contextlib.aclosing(outputs):
                return await anext(outputs, None)
        finally:
            _beam.reset(token)

    @functools.wraps(original)
    async def beam_search(self: Any, *args: Any, **kwargs: Any) -> AsyncGenerator[RequestOutput, None]:
        scope = _BeamScope()
        output = await scoped(scope, original(self, *args, **kwargs))
        guard = scope.guard
        if output is not None and scope.prompt is not None and guard is not None and guard.answers is not None:
            answers: GuardedAnswers = self.engine_client.answers
            prompt = await answers.prompt_after_beams(guard, scope.prompt, output)
            if prompt is not None:
                scope.prompt = prompt
                output = await scoped(scope, original(self, *args, **kwargs))
                if output is not None:
                    await answers.prompt_after_beams(guard, prompt, output, last=True)
        if output is not None:
            yield output

    BeamSearchOnlineMixin.beam_search = beam_search


def _refusal(reason: str, message: str) -> Callable[..., Coroutine[Any, Any, NoReturn]]:
    """A method of the engine client that answers 400, whatever it is given."""

    async def refuse(self: "GuardedEngine", *_: Any, **__: Any) -> NoReturn:
        self._refuse(reason, message)

    return refuse


class GuardedEngine(EngineClient):  # type: ignore[misc]  # vLLM's types are not checked
    """An engine client that lets nothing reach the model unclassified.

    Args:
        engine: vLLM's own client.
        traffic: the HTTP requests on their way, which a shutdown lets finish.
        policies: those in force.
        audit: told of flagged and failed prompts.
        tracing: makes the traces of requests; by default of none.
        refuse_steering: refuse requests whose client says which tokens may come.
        allow_multimodal: classify the text of multimodal prompts and refuse flagged ones, instead of refusing all.
    """

    def __init__(
        self,
        engine: Any,
        protector: Protector,
        metrics: GuardMetrics,
        traffic: Traffic,
        policies: ActivePolicies,
        audit: Audit,
        *,
        answers: GuardedAnswers,
        tracing: Tracing | None = None,
        refuse_steering: bool = False,
        allow_multimodal: bool = False,
    ) -> None:
        _scope_beam_search()
        self._engine = engine
        self._protector = protector
        self._metrics = metrics
        self._traffic = traffic
        self._policies = policies
        self._audit = audit
        self.answers = answers
        self._tracing = tracing or Tracing()
        self._refuse_steering = refuse_steering
        self._allow_multimodal = allow_multimodal
        self.vllm_config = engine.vllm_config
        self.model_config = engine.model_config
        self.renderer = engine.renderer
        self.input_processor = engine.input_processor

    async def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **options: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """vLLM's `generate` on the protected prompt, and of its answers what may leave.

        Raises:
            VLLMValidationError: 400; an input the guard does not read or vLLM does not take, or a policy that refuses.
            GracefulHTTPError: 503; the guard failed, or is too busy, and the prompt was not served. 429; the request
                lists more than it may.
        """
        if (arrival := current_arrival()) is not None:
            arrival.named(request_id)
        with self._traced(prompt, request_id, options) as trace:
            guard = self._guard_for(prompt, options.get("lora_request"))
            self._check_params(sampling_params, reads_answers=guard is not None and guard.answers is not None)
            served, safe = await self._protect(prompt, guard, request_id, trace)
            if trace.headers is not None:
                options["trace_headers"] = trace.headers
            if guard is None or guard.answers is None or _beam.get() is not None:  # beams are judged together
                stream = self._engine.generate(served, sampling_params, request_id, **options)
            else:
                request = Request(
                    prompt,
                    served,
                    safe.mask,
                    guard,
                    sampling_params,
                    request_id,
                    options,
                    is_text=prompt["type"] == "token",
                    tenant=current_tenant(),
                    trace=trace,
                    forgets=guard.answers.corrupting(safe.flagged),
                )
                stream = self.answers.run(request)
            async with contextlib.aclosing(stream) as outputs:
                async for output in outputs:
                    yield output

    def _traced(
        self, prompt: Any, request_id: str, options: Mapping[str, Any]
    ) -> contextlib.AbstractContextManager[RequestTrace]:
        """Around a request. What extends the beams of a search has vLLM's own spans alone."""
        if (scope := _beam.get()) is not None and scope.prompt is not None:
            return contextlib.nullcontext(UNTRACED)
        known = prompt if isinstance(prompt, dict) else {}
        return self._tracing.request(
            request_id,
            options.get("trace_headers"),
            tokens=len(known.get("prompt_token_ids", ())),
            tenant=current_tenant(),
            arrival_s=known.get("arrival_time"),
        )

    def _guard_for(self, prompt: Any, lora_request: Any) -> Guard | None:
        """The guard with the policies that apply to a request; None where none does. All of a beam search has one."""
        if (scope := _beam.get()) is not None and scope.guard is not None:
            return scope.guard
        guard = self._policies.guard_for(
            prompt.get("prompt_token_ids", ()) if isinstance(prompt, dict) else (),
            tenant=current_tenant(),
            adapter=None if lora_request is None else lora_request.lora_name,
        )
        if scope is not None:
            scope.guard = guard
        return guard

    def _check_params(self, params: Any, *, reads_answers: bool) -> None:
        if reads_answers and getattr(params, "prompt_logprob_token_ids", None) is not None:
            message = "prompt_logprob_token_ids is not accepted by this server, where answers are guarded"
            self._refuse("alternatives", message, parameter="prompt_logprob_token_ids")
        if self._refuse_steering:
            for name in _STEERING_PARAMS:
                if getattr(params, name, None):
                    message = f"{name} is not accepted by this server (nor what sets it, as a forced tool does)"
                    self._refuse("steering", message, parameter=name)
        for name in _TRANSFER_ARGS:
            if (getattr(params, "extra_args", None) or {}).get(name):
                self._refuse("transfer_params", f"{name} is not accepted by this server", parameter=name)

    async def _protect(
        self, prompt: Any, guard: Guard | None, request_id: str, trace: RequestTrace
    ) -> tuple[Any, ProtectedPrompt]:
        """The engine input that may be served in place of `prompt`, and what the guard made of its text."""
        kind = prompt.get("type") if isinstance(prompt, dict) else type(prompt).__name__
        if kind == "multimodal" and self._allow_multimodal and "encoder_prompt_token_ids" not in prompt:
            self._check_ids(prompt)
            safe = await self._verdict(prompt["prompt_token_ids"], guard, request_id, trace)
            if safe.mask is not None:
                self._refuse("flagged_multimodal", "this multimodal prompt cannot be answered")
            return prompt, safe
        if kind != "token":
            reason = kind if kind in {"embeds", "multimodal", "enc_dec"} else "other"
            self._refuse(reason, f"this server answers text and token-id prompts only, not {reason} input")
        self._check_ids(prompt)
        safe = await self._verdict(prompt["prompt_token_ids"], guard, request_id, trace)
        return (prompt if safe.mask is None else mixed_prompt(safe, prompt)), safe

    def _check_ids(self, prompt: Any) -> None:
        """vLLM's own checks of length and vocabulary, which it would do after the guard's work."""
        self.input_processor._validate_model_inputs(None, prompt)

    async def _verdict(
        self, token_ids: list[int], guard: Guard | None, request_id: str, trace: RequestTrace
    ) -> ProtectedPrompt:
        scope = _beam.get()
        if scope is not None and scope.prompt is not None:
            return _extended(scope.prompt, token_ids)
        arrival = current_arrival()
        try:
            if guard is None:
                prompt = ProtectedPrompt(token_ids)
                trace.outcome("passed")
            else:
                group = None if arrival is None else arrival.group
                prompt = await self._protector.protect(guard, token_ids, group, trace)
        except QueueFullError as error:
            trace.outcome("turned_away")
            self._metrics.prompt_of(current_tenant(), "turned_away", len(token_ids))
            refusal = _refusal_for(error)
            if arrival is not None:
                arrival.refusal = refusal
            raise GracefulHTTPError(refusal.message, refusal.status) from error
        except GuardError as error:
            logger.error("prompt rejected: %s (%s)", error, type(error.__cause__).__name__)
            trace.rejected(error.__cause__)
            self._metrics.prompt_of(current_tenant(), "rejected", len(token_ids))
            self._audit.event("failed", request=request_id, reason=str(error), cause=type(error.__cause__).__name__)
            raise GracefulHTTPError(
                "The request could not be checked and was not served. Please try again later.",
                HTTPStatus.SERVICE_UNAVAILABLE,
            ) from error
        self._metrics.prompt_of(current_tenant(), prompt.outcome, len(token_ids), flagged=bool(prompt.flagged))
        if guard is not None:
            trace.decided(prompt, lambda: _digests(guard))
            self._remember(guard, prompt, request_id)
        if prompt.refused_by is not None:
            self._refuse("policy", "this request is refused by the operator's policy")
        if scope is not None:
            scope.prompt = prompt
        if arrival is not None:
            await arrival.checked()
        return prompt

    def _remember(self, guard: Guard, prompt: ProtectedPrompt, request_id: str) -> None:
        """A line of the audit log for each policy that flagged a prompt."""
        flagged = prompt.flagged
        if not flagged or not self._audit.is_kept:
            return
        digests = _digests(guard)
        said: dict[str, Any] = {"prompt": self._audit.prompt_digest(prompt.token_ids)}
        if self._audit.keeps_text:
            said["text"] = self.renderer.get_tokenizer().decode(prompt.token_ids)
        for verdict in flagged:
            self._audit.event(
                "flagged",
                request=request_id,
                tenant=current_tenant(),
                policy=verdict.policy,
                digest=digests.get(verdict.policy),
                score=None if verdict.failed else round(verdict.score, 6),
                action=verdict.action,
                **said,
            )

    def _refuse(self, reason: str, message: str, parameter: str | None = None) -> NoReturn:
        self._metrics.refused_input(reason)
        raise VLLMValidationError(message, parameter=parameter)

    # What vLLM's server needs besides: read-only state, control of the caller's own requests, housekeeping.

    @property
    def is_running(self) -> bool:
        return bool(self._engine.is_running)

    @property
    def is_stopped(self) -> bool:
        return bool(self._engine.is_stopped)

    @property
    def errored(self) -> bool:
        return bool(self._engine.errored)

    @property
    def dead_error(self) -> BaseException:
        error: BaseException = self._engine.dead_error
        return error

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        self._engine.check_admission(n, request_id)

    def get_kv_event_sources(self) -> dict[int, Any]:
        return dict(self._engine.get_kv_event_sources())

    async def abort(self, request_id: str | Iterable[str]) -> None:
        await self._engine.abort(request_id)

    async def is_tracing_enabled(self) -> bool:
        return bool(await self._engine.is_tracing_enabled())

    async def do_log_stats(self) -> None:
        await self._engine.do_log_stats()

    async def check_health(self) -> None:
        """Raise `EngineDeadError` (a 503 on /health) where the engine is dead, or a thread of the guard is dead or
        stuck. A guard that is busy is not."""
        if not self._protector.is_healthy:
            raise EngineDeadError("the guard does not answer")
        await self._engine.check_health()

    async def get_supported_tasks(self) -> Any:
        return await self._engine.get_supported_tasks()

    async def reset_mm_cache(self) -> None:
        await self._engine.reset_mm_cache()

    async def add_lora(self, lora_request: Any) -> bool:
        """Only the server's own static adapters arrive here: run-time adapters are refused at launch."""
        return bool(await self._engine.add_lora(lora_request))

    def shutdown(self, timeout: float | None = None) -> None:
        """Let no new request start, those on their way finish within `timeout` seconds, and stop the engine.

        vLLM's server calls this at SIGTERM, in a thread. The engine alone would not know of prompts that are with
        the guard, nor of answers that are still being sent.
        """
        deadline = time.monotonic() + (timeout or 0.0)
        self._traffic.drain(timeout or 0.0)
        left_s = max(0.0, deadline - time.monotonic())
        self._engine.shutdown(timeout=None if timeout is None else min(left_s, _ENGINE_STOP_S))

    # Refused: other ways to the model, and control of the engine that no guarded route needs.

    def encode(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._refuse("pooling", "this server does not answer pooling requests")

    add_request = _refusal("add_request", "this server does not accept engine requests")
    notify_kv_transfer_request_rejected = _refusal(
        "transfer_params", "kv_transfer_params is not accepted by this server"
    )
    start_profile = stop_profile = _refusal("control", "profiling is not available on this server")
    reset_encoder_cache = reset_prefix_cache = _refusal("control", "cache control is not available on this server")
    sleep = release_kv_cache_memory = wake_up = _refusal("control", "sleep is not available on this server")
    pause_generation = resume_generation = _refusal("control", "pausing is not available on this server")

    async def is_sleeping(self) -> bool:
        return False

    async def is_paused(self) -> bool:
        return False


def _digests(guard: Guard) -> dict[str, str]:
    """Digests of the guard's policies by name."""
    return {policy.name: policy.bundle.digest for policy in guard.policies}


def _refusal_for(error: QueueFullError) -> Refusal:
    if error.own_fault:
        message = "The request lists more prompts than can be checked at a time. Please send fewer of them together."
        return Refusal(HTTPStatus.TOO_MANY_REQUESTS, message, error.retry_after_s)
    message = "Too many prompts are waiting to be checked. Please try again later."
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, message, error.retry_after_s)


def _extended(first: ProtectedPrompt, token_ids: list[int]) -> ProtectedPrompt:
    """The first prompt's mask and rows, with the generated tokens after it unmasked."""
    length = len(first.token_ids)
    if token_ids[:length] != first.token_ids:
        raise VLLMValidationError("a beam does not continue the prompt it started from")
    if first.mask is None or first.embeddings is None:
        return ProtectedPrompt(token_ids)
    extra = len(token_ids) - length
    padding = first.embeddings.new_zeros((extra, first.embeddings.shape[1]))
    return ProtectedPrompt(
        token_ids,
        mask=first.mask + [False] * extra,
        embeddings=torch.cat([first.embeddings, padding]),
        verdicts=first.verdicts,
    )
