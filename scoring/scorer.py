"""What is asked of a language model: log-probabilities of answers, and greedy answers.

A `Scorer` is one loaded model. A request is a prompt, the corruption of its content (or none) and the noise seed; an
answer's tokens are corrupted only where the request asks for it. The same seed gives the same noise at every strength
and in every scorer (common random numbers), so two measurements differ by what is compared and nothing else.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from console.errors import EcoError
from corruption import PERMUTING_METHODS, CorruptionSpec, corrupt
from guard import RowSource, row_seeds, template_of

_CACHED_PAIRS = 2**16


class ScorerError(EcoError):
    """A model cannot be loaded for scoring, or a text cannot be scored; one line that says what to change."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One question with its answer, as ids of the model's own rendering."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CorruptedRows:
    """The M corrupted rows of one prompt. Prompts corrupted alike share one table.

    Attributes:
        positions: M positions of the prompt, and of a scored answer behind it.
        table: (U, D) rows in the dtype and units of the checkpoint.
        row_numbers: M rows of the table, one for each position.
    """

    positions: list[int]
    table: torch.Tensor
    row_numbers: list[int]

    @property
    def rows(self) -> torch.Tensor:
        """(M, D)."""
        return self.table[self.row_numbers]


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to score an answer after, or to answer.

    Attributes:
        prompt_ids: the rendered prompt, at least one id.
        answer_ids: the answer to score; empty where one is to be generated.
        spec: how the prompt's content is corrupted; None: not at all.
        noise_seed: 0 or more; of no effect without `spec` and in methods without noise.
        answer_in_prompt: whether what `spec` corrupts is looked for in prompt and answer as one prompt, as a gateway
            does whose client has a given answer scored; else in the prompt alone.
        corrupted: rows that somebody else has corrupted, such as a guard; excludes `spec`.
        temperature: of a generated answer; 0: greedy.
        sample_seed: what a generated answer is drawn with, 0 or more, whatever it shares a batch with; of no effect
            where it is greedy.
    """

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...] = ()
    spec: CorruptionSpec | None = None
    noise_seed: int = 0
    answer_in_prompt: bool = False
    corrupted: CorruptedRows | None = None
    temperature: float = 0.0
    sample_seed: int = 0


@dataclass(frozen=True, slots=True)
class AnswerScores:
    """What a model thinks of one answer, token by token; all arrays are (A,).

    Attributes:
        logprobs: log P of each token after the prompt and the answer so far, in nats.
        greedy: whether each is the likeliest token at its place.
        vocabulary_mean: mean of log p under p itself over the vocabulary, in nats; None where not asked for.
        vocabulary_std: its standard deviation under p.
    """

    logprobs: NDArray[np.float64]
    greedy: NDArray[np.bool_]
    vocabulary_mean: NDArray[np.float64] | None = None
    vocabulary_std: NDArray[np.float64] | None = None


class ContentFinder(Protocol):
    """Says what of a prompt gets corrupted: `guard.Template`, or whatever knows which tokens carry an entity."""

    def segments(self, token_ids: Sequence[int]) -> list[range]:
        """Runs of positions, in order and apart from each other."""
        ...


class Renderer:
    """Questions and answers as ids of one model's tokenizer (a transformers tokenizer)."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.pair = functools.lru_cache(maxsize=_CACHED_PAIRS)(self._pair)  # every evaluation asks the same
        end = tokenizer.eos_token_id
        self.end_ids: frozenset[int] = frozenset(() if end is None else (int(end),))

    def _pair(self, prompt: str, answer: str, system: str | None = None, begun: str = "") -> Pair:
        """A question and its answer as a served chat request would be; plain text without a chat template.

        A system message comes before; as text of its own where there is no chat template. Where the answer is begun
        already, its rest is taken as it stands, with its space where it needs one.

        Raises:
            ScorerError: question or answer has no tokens.
        """
        prompt_ids = self.prompt_ids(prompt, system, begun)
        if not begun and not getattr(self.tokenizer, "chat_template", None):
            answer = " " + answer
        answer_ids = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
        if not prompt_ids or not answer_ids:
            raise ScorerError(f"a question or answer has no tokens ({prompt!r}, {answer!r}); give it text")
        return Pair(prompt_ids, tuple(answer_ids))

    def prompt_ids(self, prompt: str, system: str | None = None, begun: str = "") -> tuple[int, ...]:
        """A question as a served chat request has it; plain text without a chat template.

        Args:
            begun: how the answer begins: encoded with the rest, in a chat's last turn, or on a new line without one.
        """
        if getattr(self.tokenizer, "chat_template", None):
            messages = [{"role": "user", "content": prompt}]
            if system is not None:
                messages.insert(0, {"role": "system", "content": system})
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            return tuple(self.tokenizer(text + begun, add_special_tokens=False)["input_ids"])
        if system is not None:
            prompt = f"{system}\n\n{prompt}"
        return tuple(self.tokenizer(begin_answer(prompt, begun))["input_ids"])

    def continuation(self, context: str, text: str) -> Pair:
        """A text and what it goes on with, chat template or not, as lm-evaluation-harness divides them.

        Both are encoded together; what follows as many ids as the context alone has is the continuation, to which
        spaces at the end of the context belong. After an empty context the model's first token (or, where it has
        none, its last) stands in for one.

        Raises:
            ScorerError: the continuation has no tokens.
        """
        bare = context.rstrip()
        if not context:
            answer_ids = self.tokenizer.encode(text, add_special_tokens=False)
            start = self.tokenizer.bos_token_id
            start = self.tokenizer.eos_token_id if start is None else start
            prompt_ids = [] if start is None else [start]
            if answer_ids[:1] == prompt_ids:
                answer_ids = answer_ids[1:]
        else:
            whole = self._encoded(context + text)
            prompt_ids = self._encoded(bare)
            answer_ids = whole[len(prompt_ids) :]
        if not prompt_ids or not answer_ids:
            raise ScorerError(f"nothing to score: {len(prompt_ids)} tokens of context and {len(answer_ids)} after it")
        return Pair(tuple(prompt_ids), tuple(answer_ids))

    def whole(self, text: str) -> Pair:
        """A text with nothing before it: its first token, the tokenizer's own where it puts one, and all others.

        Raises:
            ScorerError: nothing follows its first token.
        """
        ids = self._encoded(text)
        if len(ids) < 2:
            raise ScorerError(f"{text[:40]!r} has a single token, and nothing stands before it; leave that text out")
        return Pair((ids[0],), tuple(ids[1:]))

    def text_ids(self, text: str) -> tuple[int, ...]:
        """A text that the model is to go on with, as it stands.

        Raises:
            ScorerError: it has no tokens.
        """
        ids = tuple(self._encoded(text))
        if not ids:
            raise ScorerError("a prompt has no tokens; give it text")
        return ids

    def _encoded(self, text: str) -> list[int]:
        """With the tokenizer's own special tokens, except where the text begins with one already."""
        start = self.tokenizer.bos_token
        special = {"add_special_tokens": False} if start and text.startswith(start) else {}
        ids: list[int] = self.tokenizer.encode(text, **special)
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def begin_answer(prompt: str, begun: str) -> str:
    """A plain text with the beginning of its answer on a line of its own, or as it is where nothing is begun."""
    if not begun:
        return prompt
    return prompt + begun if prompt.endswith("\n") else f"{prompt}\n{begun}"


class PromptCorruption:
    """Corrupts the content of prompts, and of answers where they count as prompt, for every scorer alike.

    Args:
        rows: embedding rows in checkpoint units (`corruption.EmbeddingRows`).
        content: finds what gets corrupted, normally the model's `guard.Template`.
    """

    def __init__(self, rows: RowSource, content: ContentFinder) -> None:
        self._rows = rows
        self._content = content

    def corrupted(self, requests: Sequence[Request]) -> list[CorruptedRows | None]:
        """For each request its corrupted rows; None where nothing of it is corrupted."""
        corrupted = [request.corrupted for request in requests]
        prompts = [r.prompt_ids + r.answer_ids if r.answer_in_prompt else r.prompt_ids for r in requests]
        segments: dict[tuple[int, ...], list[range]] = {}
        alike: dict[tuple[CorruptionSpec, int], list[int]] = {}
        for number, (request, prompt) in enumerate(zip(requests, prompts, strict=True)):
            if request.spec is None:
                continue
            if prompt not in segments:
                segments[prompt] = self._content.segments(prompt)
            if segments[prompt]:
                alike.setdefault((request.spec, request.noise_seed), []).append(number)
        for (spec, seed), numbers in alike.items():
            mine = [(prompts[number], segments[prompts[number]]) for number in numbers]
            make = self._permuted if spec.method in PERMUTING_METHODS else self._row_by_row
            for number, rows in zip(numbers, make(mine, spec, seed), strict=True):
                corrupted[number] = rows
        return corrupted

    def _row_by_row(
        self, prompts: Sequence[tuple[tuple[int, ...], list[range]]], spec: CorruptionSpec, seed: int
    ) -> Iterable[CorruptedRows]:
        """Noise is a function of the token, so each distinct token is corrupted once for all the prompts."""
        positions = [[p for segment in segments for p in segment] for _, segments in prompts]
        distinct = sorted({ids[p] for (ids, _), at in zip(prompts, positions, strict=True) for p in at})
        table = self._corrupt(distinct, spec, seed)  # (distinct tokens, D)
        number_of = {token: number for number, token in enumerate(distinct)}
        for (ids, _), at in zip(prompts, positions, strict=True):
            yield CorruptedRows(at, table, [number_of[ids[p]] for p in at])

    def _permuted(
        self, prompts: Sequence[tuple[tuple[int, ...], list[range]]], spec: CorruptionSpec, seed: int
    ) -> Iterable[CorruptedRows]:
        """Rows trade places within their segment, as in the guard."""
        for ids, segments in prompts:
            tables = [self._corrupt([ids[p] for p in segment], spec, seed) for segment in segments]
            positions = [p for segment in segments for p in segment]
            yield CorruptedRows(positions, torch.cat(tables), list(range(len(positions))))

    def _corrupt(self, token_ids: Sequence[int], spec: CorruptionSpec, seed: int) -> torch.Tensor:
        seeds = row_seeds(seed.to_bytes(32, "big"), "search", token_ids)
        mask = torch.ones(len(token_ids), dtype=torch.bool)
        return corrupt(self._rows.rows(token_ids), mask, spec, row_seeds=seeds)


class Scorer(ABC):
    """One loaded causal language model. `close` it when done; it cannot be used afterwards.

    Attributes:
        renderer: texts as ids of this model.
        context_tokens: what a prompt and its answer may have together; None: unknown.
        forward_passes: of the model, for all calls so far; a batch counts once for each pass.
        seconds: wall time spent in `answer_scores`, `generate` and `next_logits` so far.
        startup_s: wall time it took to load the model.
    """

    def __init__(self, tokenizer: Any, rows: RowSource, content: ContentFinder | None) -> None:
        """`rows` are in checkpoint units (`corruption.EmbeddingRows`); `content` None: what the chat template says."""
        self.renderer = Renderer(tokenizer)
        self.context_tokens: int | None = None
        self._corruption = PromptCorruption(rows, content or template_of(tokenizer))
        self.forward_passes = 0
        self.seconds = 0.0
        self.startup_s = 0.0

    def pair(self, prompt: str, answer: str) -> Pair:
        """`Renderer.pair` of a question and its answer."""
        return self.renderer.pair(prompt, answer)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of generated ids, special tokens left out."""
        return self.renderer.decode(token_ids)

    def answer_logprobs(self, requests: Sequence[Request]) -> list[NDArray[np.float64]]:
        """For each request (A,): log P of each answer token after the prompt and the answer so far, in nats."""
        return [scores.logprobs for scores in self.answer_scores(requests)]

    @abstractmethod
    def answer_scores(self, requests: Sequence[Request], *, vocabulary: bool = False) -> list[AnswerScores]:
        """What the model thinks of each answer. All requests share batches, whatever their corruption.

        Args:
            requests: each with an answer.
            vocabulary: whether the scores carry `vocabulary_mean` and `vocabulary_std`.

        Raises:
            ScorerError: one has no answer or does not fit the context, or this scorer cannot see the whole vocabulary.
        """

    @abstractmethod
    def generate(self, requests: Sequence[Request], max_new_tokens: int) -> list[tuple[int, ...]]:
        """Answers, greedy or drawn, without the token that ends them; `answer_ids` are ignored."""

    @abstractmethod
    def next_logits(self, requests: Sequence[Request]) -> list[NDArray[np.float32]]:
        """For each request (V,): the logits of the token after the prompt; `answer_ids` are ignored.

        Raises:
            ScorerError: this scorer cannot see the whole vocabulary.
        """

    @abstractmethod
    def describe(self) -> Mapping[str, str]:
        """What identifies the model and the way it is run, as JSON values."""

    @abstractmethod
    def close(self) -> None:
        """Give the model's memory and processes back."""


def check_answers(requests: Sequence[Request]) -> None:
    """Raise `ScorerError` where a request has no answer to score."""
    if any(not request.answer_ids for request in requests):
        raise ScorerError("a request has no answer to score; give each one answer tokens")


def check_context(tokens: int, context_tokens: int | None) -> None:
    """Raise `ScorerError` where a prompt with its answer does not fit into the model's context (None: unknown)."""
    if context_tokens is not None and tokens > context_tokens:
        raise ScorerError(
            f"a prompt with its answer takes {tokens} tokens and the model's context has {context_tokens}; "
            "shorten the example or give the model a longer context"
        )
