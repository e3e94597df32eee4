"""A model in this process or in vLLM's offline engine, as it is or behind policies.

What policies make of an answer that is scored is `evaluation.replies.AnswerProtocol`; what is generated starts from a
prompt that was classified alone.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from evaluation.errors import TargetError
from evaluation.leakage.probes import CorruptedPrompt
from evaluation.replies import AnswerProtocol, Ask, Reply, all_needs
from evaluation.successive.latency import Latencies
from evaluation.targets.guarded import GuardedPrompts, Protection
from scoring.scorer import Pair, Renderer, Request, Scorer, ScorerError

#: Asks in one call of the scorer: many enough to fill batches of like length, few enough to lose little when stopped.
_CHUNK: Final = 256
_VLLM_CHUNK: Final = 1024


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
        self._rendered: dict[tuple[str, str | None, str, str | None, str], Pair] = {}
        self._chunk = _VLLM_CHUNK if scorer.describe()["backend"] == "vllm" else _CHUNK

    @property
    def protocol(self) -> AnswerProtocol | None:
        return None if self._guard is None else self._guard.protocol

    def describe(self) -> Mapping[str, object]:
        facts = dict(self._scorer.describe())
        digests = {"weights_sha256": self._weights_sha256, "tokenizer_sha256": self._tokenizer_sha256}
        description: dict[str, object] = {"kind": facts.pop("backend"), **facts, **digests}
        if self._guard is not None:
            description |= {"policies": self._guard.describe(), "secret_sha256": self._guard.secret_sha256}
        return description

    def check(self, asks: Sequence[Ask]) -> None:
        if not asks:
            return
        if "requests" in all_needs(asks):
            raise TargetError("--target: these attacks are requests to a server; give the URL of one")
        if "steps" in all_needs(asks) and self._guard is None:
            raise TargetError("--target: has no policies to be added in turn; give them")
        missing = all_needs(asks) & {"vocabulary", "logits"}
        if missing and self.describe()["kind"] == "vllm":
            raise TargetError(f"--runner vllm: gives no {' and no '.join(sorted(missing))}; use --runner transformers")
        self._check_lengths(asks)
        for _ in self.replies([replace(ask, max_new_tokens=1, samples=1) for ask in asks]):
            pass

    def canonical(self, asks: Sequence[Ask]) -> list[Ask]:
        if self._guard is None:
            return [replace(ask, draw=0) if ask.draw else ask for ask in asks]
        return [self._canonical(self._guard, ask) for ask in asks]

    def _canonical(self, guard: GuardedPrompts, ask: Ask) -> Ask:
        if ask.policies is not None:
            ask = replace(ask, policies=guard.first_alike(self._render(ask), ask.policies))
        if not ask.draw or guard.flagged(self._render(ask), ask.policies):
            return ask
        return replace(ask, draw=0)  # whatever the draw

    def replies(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Reply]]:
        self._check_lengths(asks)
        groups: dict[tuple[Any, ...], list[int]] = {}  # numbers of asks that one call of the scorer can answer
        for number, ask in enumerate(asks):
            # Greedy answers of any length limit could share a call, but for its limit.
            limit = ask.max_new_tokens if ask.answer is None and not ask.next_logits else 0
            groups.setdefault((ask.answer is None, ask.vocabulary, ask.next_logits, limit), []).append(number)
        for numbers in groups.values():
            for start in range(0, len(numbers), self._chunk):
                part = numbers[start : start + self._chunk]
                try:
                    replies = self._answered([asks[number] for number in part])
                except ScorerError as error:
                    raise TargetError(str(error)) from error
                yield from zip(part, replies, strict=True)

    def corrupted_rows(self, ask: Ask) -> CorruptedPrompt | None:
        """The corrupted rows (M, D) of an ask's prompt with the real ids (M,), and the table (V, D) they came from;
        None where nothing of it is corrupted."""
        if self._guard is None:
            return None
        prompt_ids = self._render(ask).prompt_ids
        rows = self._guard.protect([Pair(prompt_ids, ())], ask.draw, ask.policies)[0].rows
        if rows is None:
            return None
        return CorruptedPrompt(tuple(prompt_ids[p] for p in rows.positions), rows.rows, self._guard.table)

    def latencies(self, asks: Sequence[Ask]) -> Latencies | None:
        """The guard's; see `evaluation.successive.latency.TimedTarget`."""
        if self._guard is None or not asks:
            return None
        seconds = self._guard.seconds([self._render(ask).prompt_ids for ask in asks], asks[0].policies)
        return Latencies("guard_ms", [one * 1000 for one in seconds])

    def close(self) -> None:
        self._scorer.close()

    def _check_lengths(self, asks: Sequence[Ask]) -> None:
        """Before the first of them is answered: what does not fit would be found in the middle of a run."""
        room = self._scorer.context_tokens
        if room is None:
            return
        too_long = []
        for ask in asks:
            pair = self._render(ask)
            to_come = 0 if ask.answer is not None or ask.next_logits else ask.max_new_tokens
            length = len(pair.prompt_ids) + len(pair.answer_ids) + to_come
            too_long += [length] if length > room else []
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
            replies = [Reply(next_logits=tuple(row.tolist())) for row in self._scorer.next_logits(requests)]
        elif first.answer is not None:
            scores = self._scorer.answer_scores(requests, vocabulary=first.vocabulary)
            replies = [
                Reply(
                    logprobs=tuple(one.logprobs.tolist()),
                    greedy=tuple(one.greedy.tolist()),
                    token_ids=tuple(request.answer_ids),
                    vocabulary_mean=() if one.vocabulary_mean is None else tuple(one.vocabulary_mean.tolist()),
                    vocabulary_std=() if one.vocabulary_std is None else tuple(one.vocabulary_std.tolist()),
                )
                for one, request in zip(scores, requests, strict=True)
            ]
        else:
            replies = self._generated(asks, requests, protections)
        if self._guard is None:
            return replies
        return [replace(r, flagged=protection.flagged) for r, protection in zip(replies, protections, strict=True)]

    def _protected(self, asks: Sequence[Ask], rendered: Sequence[Pair]) -> list[Protection]:
        if self._guard is None:
            return [Protection(flagged=False)] * len(asks)
        by_number: dict[int, Protection] = {}
        for draw, count in {(ask.draw, ask.policies) for ask in asks}:
            mine = [number for number, ask in enumerate(asks) if (ask.draw, ask.policies) == (draw, count)]
            protections = self._guard.protect([rendered[number] for number in mine], draw, count)
            by_number.update(zip(mine, protections, strict=True))
        refused = next((p.refused_by for p in by_number.values() if p.refused_by), None)
        if refused and (asks[0].answer is not None or asks[0].next_logits):
            raise TargetError(
                f"--policy: {refused!r} refuses prompts, so nothing can be scored after them; measure what is "
                "generated alone (eco evaluate tofu --generated-only)"
            )
        return [by_number[number] for number in range(len(asks))]

    def _generated(
        self, asks: Sequence[Ask], requests: Sequence[Request], protections: Sequence[Protection]
    ) -> list[Reply]:
        drawn = []
        for number, ask in enumerate(asks):
            for sample in range(0 if protections[number].refused_by else ask.samples):
                # A seed that no other question, sample or run has, in [0, 2**63).
                parts = [ask.seed, sample, ask.prompt, ask.system, ask.draw, *([ask.begun] if ask.begun else [])]
                words = json.dumps(parts)
                seed = int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big") >> 1
                drawn.append((number, replace(requests[number], temperature=ask.temperature, sample_seed=seed)))
        answers = self._scorer.generate([request for _, request in drawn], asks[0].max_new_tokens)
        texts = [[""] * a.samples if p.refused_by else [] for a, p in zip(asks, protections, strict=True)]
        for (number, _), ids in zip(drawn, answers, strict=True):
            text = self._scorer.decode(ids)
            ends = [at for at in (text.find(stop) for stop in asks[number].stop if stop) if at >= 0]
            texts[number].append(text[: min(ends, default=None)])  # as a server would return it
        return [Reply(texts=tuple(mine)) for mine in texts]

    def _render(self, ask: Ask) -> Pair:
        """An ask as ids; without an answer, none of those."""
        key = (ask.prompt, ask.answer, ask.style, ask.system, ask.begun)
        if key not in self._rendered:
            try:
                if ask.style == "whole":
                    pair = self._renderer.whole(ask.answer or "")
                elif ask.style == "text":
                    prompt = f"{ask.system}\n\n{ask.prompt}" if ask.system else ask.prompt
                    if ask.answer is None:
                        pair = Pair(self._renderer.text_ids(prompt), ())
                    else:
                        pair = self._renderer.continuation(prompt, ask.answer)
                elif ask.answer is None:
                    pair = Pair(self._renderer.prompt_ids(ask.prompt, ask.system, ask.begun), ())
                else:
                    pair = self._renderer.pair(ask.prompt, ask.answer, ask.system, ask.begun)
            except ScorerError as error:
                raise TargetError(str(error)) from error
            self._rendered[key] = pair
        return self._rendered[key]


def tokenizer_digest(tokenizer: Any) -> str:
    """sha256 in hex of a tokenizer's vocabulary, merges and chat template: equal where two models split texts alike."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    facts = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    template = json.dumps(getattr(tokenizer, "chat_template", None), sort_keys=True)
    return hashlib.sha256(f"{facts}\0{template}".encode()).hexdigest()
