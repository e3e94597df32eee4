"""A model in this process or in vLLM's offline engine, as it is or behind policies.

A policy sees the prompt and never the answer that is scored after it: the mask is of the prompt alone.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from evaluation.errors import TargetError
from evaluation.leakage.probes import CorruptedPrompt
from evaluation.replies import Ask, Reply, all_needs
from evaluation.targets.guarded import GuardedPrompts, Protection
from scoring.scorer import AnswerScores, Renderer, Request, Scorer, ScorerError

__all__ = ["OfflineTarget"]

#: Asks in one call of the scorer: many enough to fill batches of like length, few enough to lose little when stopped.
_CHUNK: Final = 256
_VLLM_CHUNK: Final = 1024


@dataclass(frozen=True, slots=True)
class _Rendered:
    """An ask as ids."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...] = ()


class OfflineTarget:
    """A `Target` (see `evaluation.replies`) over a scorer, which it closes.

    Args:
        scorer: the model.
        guard: what stands before it; None: nothing.
        weights_sha256: of the checkpoint's files: the embedding table alone does not tell two models apart.
    """

    def __init__(
        self, scorer: Scorer, guard: GuardedPrompts | None = None, *, weights_sha256: str | None = None
    ) -> None:
        self._scorer = scorer
        self._weights_sha256 = weights_sha256
        self._renderer: Renderer = scorer.renderer
        self._tokenizer_sha256 = tokenizer_digest(self._renderer.tokenizer)
        self._guard = guard
        self._rendered: dict[tuple[str, str | None, str, str | None], _Rendered] = {}
        self._chunk = _VLLM_CHUNK if scorer.describe()["backend"] == "vllm" else _CHUNK

    def describe(self) -> Mapping[str, object]:
        facts = dict(self._scorer.describe())
        found: dict[str, object] = {
            "kind": facts.pop("backend"),
            **facts,
            "weights_sha256": self._weights_sha256,
            "tokenizer_sha256": self._tokenizer_sha256,
        }
        if self._guard is not None:
            found["policies"] = self._guard.describe()
            found["secret_sha256"] = self._guard.secret_sha256
        return found

    def check(self, asks: Sequence[Ask]) -> None:
        if not asks:
            return
        missing = all_needs(asks) & {"vocabulary", "logits"}
        if missing and self.describe()["kind"] == "vllm":
            raise TargetError(f"--runner vllm: gives no {' and no '.join(sorted(missing))}; use --runner transformers")
        self._check_lengths(asks)
        for _ in self.replies([replace(ask, max_new_tokens=1, samples=1) for ask in asks]):
            pass

    def canonical(self, asks: Sequence[Ask]) -> list[Ask]:
        if self._guard is None:
            return [replace(ask, draw=0) if ask.draw else ask for ask in asks]
        prompts = [self._render(ask).prompt_ids for ask in asks]
        flagged = self._guard.flagged(prompts)
        return [ask if hit or not ask.draw else replace(ask, draw=0) for ask, hit in zip(asks, flagged, strict=True)]

    def replies(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Reply]]:
        self._check_lengths(asks)
        for numbers in _alike(asks):
            for start in range(0, len(numbers), self._chunk):
                part = numbers[start : start + self._chunk]
                try:
                    found = self._answered([asks[number] for number in part])
                except ScorerError as error:
                    raise TargetError(str(error)) from error
                yield from zip(part, found, strict=True)

    def corrupted_rows(self, ask: Ask) -> CorruptedPrompt | None:
        """The corrupted rows (M, D) of an ask's prompt with the real ids (M,), and the table (V, D) they came from;
        None where nothing of it is corrupted."""
        if self._guard is None:
            return None
        prompt_ids = self._render(ask).prompt_ids
        rows = self._guard.protect([prompt_ids], ask.draw)[0].rows
        if rows is None:
            return None
        return CorruptedPrompt(tuple(prompt_ids[p] for p in rows.positions), rows.rows, self._guard.table)

    def close(self) -> None:
        self._scorer.close()

    def _check_lengths(self, asks: Sequence[Ask]) -> None:
        """Before the first of them is answered: what does not fit would be found in the middle of a run."""
        room = self._scorer.context_tokens
        if room is None:
            return
        lengths = [_length(self._render(ask), ask) for ask in asks]
        too_long = [length for length in lengths if length > room]
        if too_long:
            raise TargetError(
                f"--target: {len(too_long)} of {len(asks)} prompts with their answers take up to {max(too_long)} "
                f"tokens, and the model's context has {room}; shorten them, or give fewer --max-new-tokens"
            )

    def _answered(self, asks: Sequence[Ask]) -> list[Reply]:
        """Replies to asks of one kind."""
        rendered = [self._render(ask) for ask in asks]
        protections = self._protected(asks, rendered)
        requests = [
            Request(one.prompt_ids, one.answer_ids, corrupted=protection.rows)
            for one, protection in zip(rendered, protections, strict=True)
        ]
        first = asks[0]
        if first.next_logits:
            logits = self._scorer.next_logits(requests)
            replies = [Reply(next_logits=tuple(row.tolist())) for row in logits]
        elif first.answer is not None:
            scores = self._scorer.answer_scores(requests, vocabulary=first.vocabulary)
            replies = [_scored(one, request.answer_ids) for one, request in zip(scores, requests, strict=True)]
        else:
            replies = self._generated(asks, requests, protections)
        if self._guard is None:
            return replies
        return [replace(r, flagged=protection.flagged) for r, protection in zip(replies, protections, strict=True)]

    def _protected(self, asks: Sequence[Ask], rendered: Sequence[_Rendered]) -> list[Protection]:
        if self._guard is None:
            return [Protection(flagged=False)] * len(asks)
        found: dict[int, Protection] = {}
        for draw in {ask.draw for ask in asks}:
            mine = [number for number, ask in enumerate(asks) if ask.draw == draw]
            protections = self._guard.protect([rendered[number].prompt_ids for number in mine], draw)
            found.update(zip(mine, protections, strict=True))
        refused = next((p.refused_by for p in found.values() if p.refused_by), None)
        if refused and (asks[0].answer is not None or asks[0].next_logits):
            raise TargetError(
                f"--policy: {refused!r} refuses prompts, so nothing can be scored after them; measure what is "
                "generated alone (eco evaluate tofu --generated-only)"
            )
        return [found[number] for number in range(len(asks))]

    def _generated(
        self, asks: Sequence[Ask], requests: Sequence[Request], protections: Sequence[Protection]
    ) -> list[Reply]:
        drawn = [
            (number, replace(requests[number], temperature=ask.temperature, sample_seed=_sample_seed(ask, sample)))
            for number, ask in enumerate(asks)
            if not protections[number].refused_by
            for sample in range(ask.samples)
        ]
        answers = self._scorer.generate([request for _, request in drawn], asks[0].max_new_tokens)
        texts = [
            [""] * ask.samples if protection.refused_by else []
            for ask, protection in zip(asks, protections, strict=True)
        ]
        for (number, _), ids in zip(drawn, answers, strict=True):
            texts[number].append(_cut(self._scorer.decode(ids), asks[number].stop))
        return [Reply(texts=tuple(mine)) for mine in texts]

    def _render(self, ask: Ask) -> _Rendered:
        key = (ask.prompt, ask.answer, ask.style, ask.system)
        if key not in self._rendered:
            try:
                self._rendered[key] = self._ids(ask)
            except ScorerError as error:
                raise TargetError(str(error)) from error
        return self._rendered[key]

    def _ids(self, ask: Ask) -> _Rendered:
        if ask.style == "text":
            prompt = f"{ask.system}\n\n{ask.prompt}" if ask.system else ask.prompt
            if ask.answer is None:
                return _Rendered(self._renderer.text_ids(prompt))
            pair = self._renderer.continuation(prompt, ask.answer)
            return _Rendered(pair.prompt_ids, pair.answer_ids)
        if ask.answer is None:
            return _Rendered(self._renderer.prompt_ids(ask.prompt, ask.system))
        pair = self._renderer.pair(ask.prompt, ask.answer, ask.system)
        return _Rendered(pair.prompt_ids, pair.answer_ids)


def _alike(asks: Sequence[Ask]) -> Iterable[list[int]]:
    """Numbers of asks that one call of a scorer can answer, in order."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, ask in enumerate(asks):
        kind = (ask.answer is None, ask.vocabulary, ask.next_logits)
        # Greedy answers of any length limit could share a call, but for its limit.
        limit = ask.max_new_tokens if ask.answer is None and not ask.next_logits else 0
        groups.setdefault((*kind, limit), []).append(number)
    return groups.values()


def _length(rendered: _Rendered, ask: Ask) -> int:
    """Tokens of a prompt with its answer, given or to come."""
    new = 0 if ask.answer is not None or ask.next_logits else ask.max_new_tokens
    return len(rendered.prompt_ids) + len(rendered.answer_ids) + new


def _scored(scores: AnswerScores, answer_ids: tuple[int, ...]) -> Reply:
    return Reply(
        logprobs=tuple(scores.logprobs.tolist()),
        greedy=tuple(scores.greedy.tolist()),
        token_ids=answer_ids,
        vocabulary_mean=() if scores.vocabulary_mean is None else tuple(scores.vocabulary_mean.tolist()),
        vocabulary_std=() if scores.vocabulary_std is None else tuple(scores.vocabulary_std.tolist()),
    )


def _sample_seed(ask: Ask, sample: int) -> int:
    """Of one drawn answer: no other question's, sample's or run's, in [0, 2**63)."""
    words = json.dumps([ask.seed, sample, ask.prompt, ask.system, ask.draw])
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big") >> 1


def _cut(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of the stops, as a server would return it."""
    ends = [at for at in (text.find(stop) for stop in stops if stop) if at >= 0]
    return text[: min(ends)] if ends else text


def tokenizer_digest(tokenizer: Any) -> str:
    """sha256 in hex of a tokenizer's vocabulary, merges and chat template: equal where two models split texts alike."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    facts = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    template = json.dumps(getattr(tokenizer, "chat_template", None), sort_keys=True)
    return hashlib.sha256(f"{facts}\0{template}".encode()).hexdigest()
