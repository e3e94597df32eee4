"""A scorer over a transformers model, on CPU or GPU, with everything of one call in shared batches."""

import functools
import hashlib
import inspect
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self, TypeVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from numpy.typing import NDArray

from console.errors import first_line
from console.quiet import quiet_transformers
from corruption import CheckpointError, EmbeddingRows
from guard import RowSource
from guard.transformers_adapter import ModelRows, row_scale_of
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

#: Prompts in one batch. On a CPU, more only makes the copies of the KV cache larger than its caches.
_CPU_BATCH, _GPU_BATCH = 64, 256
#: Tokens of one batch that a CPU reads at once: what a layer makes of more does not stay in its caches.
_CPU_TOKENS = 1024
#: Logits of one batch, in numbers: 1 GiB as float32.
_MAX_LOGITS = 2**28
_T = TypeVar("_T")


class TransformersScorer(Scorer):
    """A `Scorer` (see there) with a model loaded in this process.

    Args:
        model: a transformers causal LM, in eval mode.
        tokenizer: its tokenizer.
        content: finds what gets corrupted; None: what the chat template calls content.
        rows: the checkpoint's embedding rows, in whose dtype prompts are corrupted; None: the loaded model's.
        batch_size: prompts in one batch at most; None: 64 on a CPU, 256 elsewhere.
        startup_s: what loading the model took.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        content: ContentFinder | None = None,
        rows: RowSource | None = None,
        batch_size: int | None = None,
        startup_s: float = 0.0,
    ) -> None:
        super().__init__(tokenizer, rows or ModelRows(model), content)
        self.startup_s = startup_s
        self._model = model
        self._embed = model.get_input_embeddings()
        self._scale = row_scale_of(model)
        self._device: torch.device = self._embed.weight.device
        self._batch_size = batch_size or (_CPU_BATCH if self._device.type == "cpu" else _GPU_BATCH)
        # What ends an answer by the model's generation config; vLLM stops at the same.
        ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        ends = [] if ends is None else ends if isinstance(ends, list | tuple) else [ends]
        self._end_ids = self.renderer.end_ids | {int(end) for end in ends}
        self._parameters = frozenset(inspect.signature(model.forward).parameters)
        self.context_tokens = getattr(model.config.get_text_config(), "max_position_embeddings", None)

    @classmethod
    def load(
        cls,
        name: str,
        *,
        device: str | None = None,
        dtype: torch.dtype | None = None,
        content: ContentFinder | None = None,
        batch_size: int | None = None,
    ) -> Self:
        """Load a local folder or hub id.

        Args:
            device: torch's name of it; None: the GPU where there is one.
            dtype: None: the checkpoint's own on a GPU, float32 on a CPU.

        Raises:
            ScorerError: it cannot be loaded.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        started = time.perf_counter()
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            with quiet_transformers():
                tokenizer = AutoTokenizer.from_pretrained(name)
                model: Any = AutoModelForCausalLM.from_pretrained(
                    name, dtype=dtype or (torch.float32 if device == "cpu" else "auto")
                )
            model = model.to(device).eval()
        except (OSError, ValueError, RuntimeError) as error:
            raise ScorerError(f"{name}: cannot be loaded ({first_line(error)})") from error
        try:
            rows: RowSource | None = EmbeddingRows.open(name)
        except CheckpointError:  # pickled weights: what was loaded has to do
            rows = None
        taken = time.perf_counter() - started
        return cls(model, tokenizer, content=content, rows=rows, batch_size=batch_size, startup_s=taken)

    def describe(self) -> Mapping[str, str]:
        return {
            "backend": "transformers",
            "model": str(self._model.name_or_path),
            "embedding_sha256": self._embedding_digest,
            "dtype": str(self._embed.weight.dtype).removeprefix("torch."),
        }

    @functools.cached_property
    def _embedding_digest(self) -> str:
        table = self._embed.weight.detach().cpu().contiguous().view(torch.uint8)
        return hashlib.sha256(table.numpy().data).hexdigest()

    def close(self) -> None:
        """Let go of the model."""
        del self._model, self._embed, self._corruption
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def answer_scores(self, requests: Sequence[Request], *, vocabulary: bool = False) -> list[AnswerScores]:
        check_answers(requests)
        lengths = [len(request.prompt_ids) + len(request.answer_ids) for request in requests]
        return self._in_batches(requests, lengths, functools.partial(self._score, vocabulary=vocabulary))

    def generate(self, requests: Sequence[Request], max_new_tokens: int) -> list[tuple[int, ...]]:
        lengths = [len(request.prompt_ids) for request in requests]
        answer = functools.partial(self._answer, max_new_tokens=max_new_tokens)
        return self._in_batches(requests, lengths, answer, room=max_new_tokens, kept_positions=1)

    def next_logits(self, requests: Sequence[Request]) -> list[NDArray[np.float32]]:
        def answer(batch: Sequence[Request], corrupted: Sequence[CorruptedRows | None]) -> NDArray[np.float32]:
            output, _, _ = self._read(batch, corrupted)
            logits: NDArray[np.float32] = output.logits[:, -1].float().cpu().numpy()  # (B, V)
            return logits

        lengths = [len(request.prompt_ids) for request in requests]
        return self._in_batches(requests, lengths, answer, kept_positions=1)

    def _in_batches(
        self,
        requests: Sequence[Request],
        lengths: Sequence[int],
        answer: Callable[[Sequence[Request], Sequence[CorruptedRows | None]], Iterable[_T]],
        *,
        room: int = 0,
        kept_positions: int | None = None,
    ) -> list[_T]:
        """What `answer` finds for each request, given batches of like length, the longest first, with corrupted rows.

        Args:
            lengths: tokens of each that go through the model at once.
            room: further tokens of context that each needs.
            kept_positions: of how many positions logits are kept; None: of all.
        """
        started = time.perf_counter()
        most_tokens = _CPU_TOKENS if self._device.type == "cpu" and not room else sys.maxsize
        check_context(max(lengths, default=0) + room, self.context_tokens)
        corrupted = self._corruption.corrupted(requests)
        answers: dict[int, _T] = {}
        with torch.inference_mode():
            order = sorted(range(len(lengths)), key=lambda number: -lengths[number])  # what does not fit fails at once
            while order:
                logits = (kept_positions or lengths[order[0]]) * self._embed.weight.shape[0]
                size = max(1, min(self._batch_size, _MAX_LOGITS // logits, most_tokens // lengths[order[0]]))
                batch, order = order[:size], order[size:]
                part = answer([requests[i] for i in batch], [corrupted[i] for i in batch])
                answers.update(zip(batch, part, strict=True))
        self.seconds += time.perf_counter() - started
        return [answers[number] for number in range(len(requests))]

    def _score(
        self, requests: Sequence[Request], corrupted: Sequence[CorruptedRows | None], vocabulary: bool
    ) -> Iterator[AnswerScores]:
        """One forward pass, padded on the right: what follows a token cannot change it."""
        ids, attention = _padded([request.prompt_ids + request.answer_ids for request in requests], left=False)
        first = min(len(request.prompt_ids) for request in requests) - 1  # predicts the first answer token of all
        keep = {}
        if "logits_to_keep" in self._parameters:
            keep["logits_to_keep"] = torch.arange(first, ids.shape[1], device=self._device)
        else:
            first = 0
        embeddings = self._embedded(ids, corrupted, [0] * len(requests))
        logits = self._model(inputs_embeds=embeddings, attention_mask=attention.to(self._device), **keep).logits
        self.forward_passes += 1
        for row, request in enumerate(requests):
            start = len(request.prompt_ids) - 1 - first
            wanted = torch.tensor(request.answer_ids, device=self._device)  # (A,)
            predicted = logits[row, start : start + len(wanted)].float()  # (A, V)
            logprobs = (-F.cross_entropy(predicted, wanted, reduction="none")).double().cpu().numpy()
            greedy = (predicted.argmax(dim=-1) == wanted).cpu().numpy()
            if not vocabulary:
                yield AnswerScores(logprobs, greedy)
                continue
            everything = predicted.double().log_softmax(dim=-1)  # (A, V)
            weights = everything.exp()
            mean = (weights * everything).sum(dim=-1)  # (A,)
            variance = (weights * (everything - mean.unsqueeze(-1)) ** 2).sum(dim=-1)
            yield AnswerScores(logprobs, greedy, mean.cpu().numpy(), variance.sqrt().cpu().numpy())

    def _read(
        self, requests: Sequence[Request], corrupted: Sequence[CorruptedRows | None]
    ) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """The model's output for prompts, padded on the left, with their attention mask and positions (B, T)."""
        ids, attention = _padded([request.prompt_ids for request in requests], left=True)
        attention = attention.to(self._device)
        positions = (attention.cumsum(dim=1) - 1).clamp_min(0)  # from the first token that is none of the padding
        padding = [ids.shape[1] - len(request.prompt_ids) for request in requests]
        embeddings = self._embedded(ids, corrupted, padding)
        return self._step({"inputs_embeds": embeddings}, attention, positions), attention, positions

    def _answer(
        self, requests: Sequence[Request], corrupted: Sequence[CorruptedRows | None], max_new_tokens: int
    ) -> list[tuple[int, ...]]:
        """Decoding with a KV cache; prompts that have ended leave the batch."""
        generators = [torch.Generator().manual_seed(request.sample_seed) for request in requests]
        answers: list[list[int]] = [[] for _ in requests]
        active = list(range(len(requests)))
        output, attention, positions = self._read(requests, corrupted)
        for step in range(1, max_new_tokens + 1):
            chosen = output.logits[:, -1].argmax(dim=-1)  # (B,)
            for row, number in enumerate(active):
                if (temperature := requests[number].temperature) > 0:
                    probabilities = (output.logits[row, -1].double().cpu() / temperature).softmax(dim=-1)  # (V,)
                    chosen[row] = int(torch.multinomial(probabilities, 1, generator=generators[number]))
            going_on = []
            for row, token in enumerate(chosen.tolist()):
                if token not in self._end_ids:
                    answers[active[row]].append(token)
                    going_on.append(row)
            if not going_on or step == max_new_tokens:
                break
            cache = output.past_key_values
            if len(going_on) < len(active):
                rows = torch.tensor(going_on, device=self._device)
                cache.batch_select_indices(rows)
                chosen, attention, positions = chosen[rows], attention[rows], positions[rows]
                active = [active[row] for row in going_on]
            attention = F.pad(attention, (0, 1), value=1)
            positions = positions[:, -1:] + 1
            inputs = {"input_ids": chosen.unsqueeze(1), "past_key_values": cache}
            output = self._step(inputs, attention, positions)
        return [tuple(answer) for answer in answers]

    def _step(self, inputs: Mapping[str, Any], attention: torch.Tensor, positions: torch.Tensor) -> Any:
        options = {"position_ids": positions, "logits_to_keep": 1}
        known = {name: value for name, value in options.items() if name in self._parameters}
        self.forward_passes += 1
        return self._model(**inputs, attention_mask=attention, use_cache=True, **known)

    def _embedded(
        self, ids: torch.Tensor, corrupted: Sequence[CorruptedRows | None], offsets: Sequence[int]
    ) -> torch.Tensor:
        """(B, T) ids -> (B, T, D) as the model embeds them, with the corrupted rows in their places."""
        embeddings: torch.Tensor = self._embed(ids.to(self._device))
        for row, (rows, offset) in enumerate(zip(corrupted, offsets, strict=True)):
            if rows is not None:
                at = torch.tensor(rows.positions, device=self._device) + offset
                embeddings[row, at] = (rows.rows.to(self._device).float() * self._scale).to(embeddings.dtype)
        return embeddings


def _padded(sequences: Sequence[Sequence[int]], *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T) ids with 0 where there is none, and (B, T) attention mask."""
    length = max(len(sequence) for sequence in sequences)
    ids = torch.zeros(len(sequences), length, dtype=torch.long)
    attention = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        span = slice(length - len(sequence), length) if left else slice(0, len(sequence))
        ids[row, span] = torch.tensor(sequence)
        attention[row, span] = 1
    return ids, attention
