"""A scorer over vLLM's offline engine: one engine for a whole search, at any tensor-parallel size.

Only public names of vLLM (0.32): `LLM`, `SamplingParams` and the prompts of `vllm.inputs`. A corrupted prompt is a
mixed one, as in the gateway: rows where it is corrupted, token ids everywhere else. Answers are scored by prompt
log-probabilities. What the engine embeds is compared with the checkpoint before anything is scored.
"""

import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from corruption import EmbeddingRows
from scoring.scorer import (
    AnswerScores,
    ContentFinder,
    CorruptedRows,
    Request,
    Scorer,
    ScorerError,
    check_answers,
    check_context,
)

#: Rows of one `generate` call: more than any search on a few hundred prompts needs, and no more than memory holds.
_MAX_EMBEDDING_BYTES = 4 * 2**30
_MESSAGE_CHARACTERS = 300
_PROBE_ROWS, _PROBE_PROMPTS, _PROBE_TOKENS = 48, 3, 12
#: vLLM's own five seconds are about what its workers need to end by themselves.
_STOP_TIMEOUT_S = 20.0
#: vLLM's engine steps that returned tokens, as its own metrics count them.
_STEPS = "vllm:iteration_tokens_total"
_WHOLE_VOCABULARY = "vLLM gives no numbers for the whole vocabulary; use the transformers scorer"


class RowProbe:
    """What vLLM mixes into every worker (`worker_extension_cls`, its supported way in)."""

    def probe_rows(self, token_ids: list[int]) -> tuple[list[list[float]], bool]:
        """What this worker embeds for T ids, (T, D), and whether its model reads the ids beyond their embedding."""
        model = self.model_runner.get_model()  # type: ignore[attr-defined]
        ids = torch.tensor(token_ids, dtype=torch.long, device=self.device)  # type: ignore[attr-defined]
        with torch.inference_mode():
            rows = model.embed_input_ids(ids).float().cpu().tolist()
        return rows, bool(getattr(model, "requires_raw_input_tokens", False))


class VllmScorer(Scorer):
    """A `Scorer` (see there) with a vLLM engine in processes of its own.

    vLLM starts them with the module that runs as a script imported anew: scripts need `if __name__ == "__main__"`.
    Where they are not set, `VLLM_LOGGING_LEVEL` becomes WARNING and `VLLM_NO_USAGE_STATS` 1 in this process.

    Args:
        model: a local folder or hub id with safetensors.
        dtype: vLLM's name of it; "auto" is the checkpoint's own.
        tensor_parallel_size: workers, each with a part of the model.
        enforce_eager: start at once, without compiling; slower on a GPU.
        content: finds what gets corrupted; None: what the chat template calls content.
        engine_options: more of `vllm.LLM`'s arguments (`max_model_len`, `kv_cache_memory_bytes` …).

    Raises:
        ScorerError: vLLM is missing or does not start, or its embeddings are not the checkpoint's rows.
        CheckpointError: the checkpoint's rows cannot be read.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "auto",
        tensor_parallel_size: int = 1,
        enforce_eager: bool = False,
        content: ContentFinder | None = None,
        **engine_options: Any,
    ) -> None:
        started = time.perf_counter()
        self._model = model
        self._rows = EmbeddingRows.open(model, revision=engine_options.get("revision"))
        parallel = {"tensor_parallel_size": tensor_parallel_size, "enforce_eager": enforce_eager}
        self._llm = _start_engine(model, dtype=dtype, **parallel, **engine_options)
        try:
            super().__init__(self._llm.get_tokenizer(), self._rows, content)
            self.context_tokens = self._llm.model_config.max_model_len - 1  # one is generated after a scored answer
            self._dtype: torch.dtype = self._llm.model_config.dtype
            self._scale = self._derive_scale()
            self._prove_rows()
        except BaseException:
            self.close()
            raise
        self.forward_passes, self.seconds = 0, 0.0
        self.startup_s = time.perf_counter() - started

    def describe(self) -> Mapping[str, str]:
        return {
            "backend": "vllm",
            "model": self._model,
            "embedding_sha256": self._rows.digest(),
            "dtype": str(self._dtype).removeprefix("torch."),
        }

    def close(self) -> None:
        """Stop the engine's processes and wait until they have ended."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown(timeout=_STOP_TIMEOUT_S)
            self._llm = None

    def answer_scores(self, requests: Sequence[Request], *, vocabulary: bool = False) -> list[AnswerScores]:
        if vocabulary:
            raise ScorerError(_WHOLE_VOCABULARY)
        check_answers(requests)
        outputs = self._run(requests, max_tokens=1, prompt_logprobs=0)
        scores = []
        for request, output in zip(requests, outputs, strict=True):
            tables = output.prompt_logprobs[-len(request.answer_ids) :]
            tokens = [table[token] for table, token in zip(tables, request.answer_ids, strict=True)]
            logprobs = np.array([token.logprob for token in tokens], dtype=np.float64)
            scores.append(AnswerScores(logprobs, np.array([token.rank == 1 for token in tokens])))
        return scores

    def next_logits(self, requests: Sequence[Request]) -> list[NDArray[np.float32]]:  # noqa: ARG002 - the protocol's
        raise ScorerError(_WHOLE_VOCABULARY)

    def generate(self, requests: Sequence[Request], max_new_tokens: int) -> list[tuple[int, ...]]:
        bare = [replace(request, answer_ids=()) for request in requests]
        completions = [output.outputs[0] for output in self._run(bare, max_tokens=max_new_tokens)]
        # vLLM reports the token that ended an answer as part of it.
        return [tuple(c.token_ids[:-1] if c.finish_reason == "stop" else c.token_ids) for c in completions]

    def _run(self, requests: Sequence[Request], max_tokens: int, **sampling: Any) -> list[Any]:
        """vLLM's output for each request's prompt with its answer."""
        from vllm import SamplingParams

        started, steps = time.perf_counter(), self._engine_steps()
        longest = max((len(request.prompt_ids) + len(request.answer_ids) for request in requests), default=0)
        check_context(longest + max_tokens, self._llm.model_config.max_model_len)
        corrupted = self._corruption.corrupted(requests)
        fixed: dict[str, Any] = {"max_tokens": max_tokens, "detokenize": False, **sampling}
        outputs: list[Any] = []
        for part in self._parts(requests, corrupted):
            prompts = [self._prompt(requests[i].prompt_ids + requests[i].answer_ids, corrupted[i]) for i in part]
            params = []
            for request in (requests[i] for i in part):
                seed = request.sample_seed if request.temperature > 0 else None
                params.append(SamplingParams(temperature=request.temperature, seed=seed, **fixed))
            outputs += self._llm.generate(prompts, params, use_tqdm=False)
        self.forward_passes += self._engine_steps() - steps
        self.seconds += time.perf_counter() - started
        return outputs

    def _parts(self, requests: Sequence[Request], corrupted: Sequence[CorruptedRows | None]) -> Iterator[range]:
        """Runs of requests whose embeddings fit into memory together: nearly always one."""
        start, total = 0, 0
        for number, request in enumerate(requests):
            tokens = len(request.prompt_ids) + len(request.answer_ids) if corrupted[number] is not None else 0
            size = tokens * self._rows.hidden_size * self._dtype.itemsize
            if total + size > _MAX_EMBEDDING_BYTES and number > start:
                yield range(start, number)
                start, total = number, 0
            total += size
        if start < len(requests):
            yield range(start, len(requests))

    def _prompt(self, token_ids: Sequence[int], corrupted: CorruptedRows | None) -> Any:
        from vllm.inputs import EmbedsPrompt, TokensPrompt

        if corrupted is None:
            return TokensPrompt(prompt_token_ids=list(token_ids))
        embeddings = torch.zeros(len(token_ids), self._rows.hidden_size, dtype=self._dtype)  # (T, D)
        embeddings[corrupted.positions] = (corrupted.rows.float() * self._scale).to(self._dtype)
        is_token = [True] * len(token_ids)
        for position in corrupted.positions:
            is_token[position] = False
        return EmbedsPrompt(prompt_embeds=embeddings, prompt_token_ids=list(token_ids), prompt_is_token_ids=is_token)

    def _engine_steps(self) -> int:
        return sum(metric.count for metric in self._llm.get_metrics() if metric.name == _STEPS)

    def _derive_scale(self) -> float:
        """The factor between the checkpoint's rows and the engine's: 1 for most models, not for Gemma."""
        ids = self._probe_ids()
        answers = self._llm.collective_rpc("probe_rows", args=(ids,))
        if any(reads_ids for _, reads_ids in answers):
            raise ScorerError(f"{self._model}: reads token ids beyond their embedding; it cannot be corrupted")
        ours = self._rows.rows(ids)
        scales = {_scale_between(ours, torch.tensor(rows), self._dtype) for rows, _ in answers}  # one for each worker
        scale = scales.pop()
        if scale is None or scales:
            raise ScorerError(
                f"{self._model}: vLLM embeds something else than the checkpoint's rows or a multiple of them; "
                "use the transformers scorer"
            )
        return scale

    def _prove_rows(self) -> None:
        """Prompts as ids and as their uncorrupted rows must be equally likely, or the search would measure nothing."""
        chooser = random.Random(0)  # noqa: S311 - probe ids, not secrets
        prompts = [tuple(chooser.choices(self._probe_ids(), k=_PROBE_TOKENS)) for _ in range(_PROBE_PROMPTS)]
        everything = list(range(_PROBE_TOKENS))
        as_ids = [Request(ids[:1], ids[1:]) for ids in prompts]
        as_rows = [
            replace(request, corrupted=CorruptedRows(everything, self._rows.rows(ids), everything))
            for request, ids in zip(as_ids, prompts, strict=True)
        ]
        logprobs = np.array(self.answer_logprobs([*as_ids, *as_rows]))  # (2 * prompts, tokens - 1)
        difference = float(np.abs(logprobs[: len(prompts)] - logprobs[len(prompts) :]).max())
        tolerance = max(1e-3, 32 * torch.finfo(self._dtype).eps)
        if not difference <= tolerance:
            raise ScorerError(
                f"{self._model}: vLLM's log-probabilities from token ids and from their embedding rows differ by "
                f"{difference:.2g}; use the transformers scorer"
            )

    def _probe_ids(self) -> list[int]:
        size = min(self._rows.vocab_size, len(self.renderer.tokenizer))
        return sorted(random.Random(0).sample(range(size), min(_PROBE_ROWS, size)))  # noqa: S311 - not secrets


def _scale_between(checkpoint: torch.Tensor, engine: torch.Tensor, dtype: torch.dtype) -> float | None:
    """What makes the engine's rows (P, D) of the checkpoint's (P, D); None where no one factor does."""
    if checkpoint.shape != engine.shape:
        return None
    ours, theirs = checkpoint.double(), engine.double()
    scale = float((ours * theirs).sum() / (ours * ours).sum().clamp_min(1e-30))
    rounding = 4 * torch.finfo(dtype).eps
    if scale <= 0 or bool(((ours * scale - theirs).abs() > rounding * theirs.abs() + 1e-12).any()):
        return None
    # Models keep their factor in their own dtype.
    return 1.0 if abs(scale - 1.0) < 1e-3 else float(torch.tensor(scale).to(dtype))


def _start_engine(model: str, **options: Any) -> Any:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    try:
        from vllm import LLM
    except ImportError as error:
        raise ScorerError(
            "vLLM is not installed; install eco-gateway[cpu] or eco-gateway[gpu], or use the transformers scorer"
        ) from error
    fixed: dict[str, Any] = {
        "enable_prompt_embeds": True,
        "enable_prefix_caching": False,  # every corruption is another prompt
        "disable_log_stats": False,  # counts the steps
        "worker_extension_cls": f"{__name__}.RowProbe",
    }
    try:
        return LLM(model, **options, **fixed)
    except Exception as error:  # vLLM's own errors share no public base class
        reason = " ".join(str(error).split())[:_MESSAGE_CHARACTERS] or type(error).__name__
        raise ScorerError(f"{model}: vLLM does not start ({reason})") from error
