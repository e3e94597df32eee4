"""Relearning: what an attacker wins back who fine-tunes a clean model on the answers of a guarded one.

The clean model never learned the subject, or has unlearned it. It is fine-tuned on what the guarded model answers to
the forget questions, and asked the same questions again. Fine-tuned on the true answers instead, it gives the upper
bound: all that such an attack could win with this training. Fine-tuning as an attack on unlearned models: Hu et al.,
arXiv 2406.13356, who fine-tune on data at hand; here the data are what the guard lets out.

A plain loop: AdamW, loss on answer tokens alone. It is meant for small base models; a large one needs a GPU, and the
memory of two copies and AdamW's states.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence

from console.errors import first_line
from console.quiet import quiet_transformers
from evaluation.errors import EvaluationError
from evaluation.intervals import bootstrap, table_of
from evaluation.suite import Figure, Score
from scoring.metrics import answer_probability
from scoring.scorer import Renderer, Request, ScorerError
from scoring.transformers_scorer import TransformersScorer

_IGNORED = -100  # torch's own mark of a target that does not count
_MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True, slots=True)
class RelearnSettings:
    """How the attacker trains.

    Attributes:
        epochs: passes over the pairs.
        learning_rate: of AdamW, constant, without weight decay.
        batch_size: pairs in one step.
        seed: of the order and of dropout.
        max_new_tokens: of the answers that are asked for again.
    """

    epochs: int = 10
    learning_rate: float = 1e-4
    batch_size: int = 8
    seed: int = 0
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise EvaluationError(f"--relearn-{name.replace('_', '-')}: {getattr(self, name)}; give 1 or more")
        if not self.learning_rate > 0:
            raise EvaluationError(f"--relearn-learning-rate: {self.learning_rate}; give a number above 0")


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What a model knows of N questions.

    Attributes:
        probabilities: N values P(a|q)^(1/|a|) of the true answers (TOFU, arXiv 2401.06121, section 2.2.1). They rise
            with the form of the answers too, which every answer shares: read them beside `answers`.
        answers: N greedy answers.
    """

    probabilities: tuple[float, ...]
    answers: tuple[str, ...]


class Relearner:
    """A base model and what fine-tuning makes of it. The base is never changed: each training works on a copy.

    Args:
        model: a transformers causal LM, in eval mode.
        tokenizer: its tokenizer.
        examples: N questions with their true answers.

    Raises:
        EvaluationError: a question with its answer does not fit into the model.
    """

    def __init__(
        self, model: Any, tokenizer: Any, examples: Sequence[tuple[str, str]], settings: RelearnSettings | None = None
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._renderer = Renderer(tokenizer)
        self._examples = list(examples)
        self._settings = settings or RelearnSettings()
        self._context: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._before: Knowledge | None = None
        self._upper: Knowledge | None = None

    @classmethod
    def load(cls, base: str, examples: Sequence[tuple[str, str]], settings: RelearnSettings | None = None) -> Self:
        """Load the clean model, a local folder or a hub id; on the GPU where there is one, in float32.

        Raises:
            EvaluationError: it cannot be loaded.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            tokenizer = AutoTokenizer.from_pretrained(base)
            with quiet_transformers():
                model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        except (OSError, ValueError, RuntimeError) as error:
            raise EvaluationError(f"--relearn-base: {base}: cannot be loaded ({first_line(error)})") from error
        return cls(model.to(device).eval(), tokenizer, examples, settings)

    def before(self) -> Knowledge:
        """What the clean model knows; measured once."""
        self._before = self._before or self._knowledge(self._model)
        return self._before

    def upper_bound(self) -> Knowledge:
        """After fine-tuning on the true answers; measured once."""
        self._upper = self._upper or self.after([answer for _, answer in self._examples])
        return self._upper

    def after(self, answers: Sequence[str]) -> Knowledge:
        """After fine-tuning on N answers, in the order of the questions; empty ones teach nothing.

        Raises:
            EvaluationError: a question or answer does not fit into the model.
        """
        taught = zip(self._examples, answers, strict=True)
        pairs = [(question, answer) for (question, _), answer in taught if answer.strip()]
        return self._knowledge(self._fine_tuned(pairs)) if pairs else self.before()

    def _knowledge(self, model: Any) -> Knowledge:
        scorer = TransformersScorer(model, self._tokenizer)
        try:
            pairs = [scorer.pair(question, answer) for question, answer in self._examples]
            logprobs = scorer.answer_logprobs([Request(p.prompt_ids, p.answer_ids) for p in pairs])
            room = self._settings.max_new_tokens
            if self._context is not None:
                room = min(room, self._context - max(len(pair.prompt_ids) for pair in pairs))
            generated = scorer.generate([Request(pair.prompt_ids) for pair in pairs], room)
        except ScorerError as error:
            raise EvaluationError(f"--relearn-base: {error}") from error
        answers = tuple(scorer.decode(ids).strip() for ids in generated)
        return Knowledge(tuple(map(answer_probability, logprobs)), answers)

    def _fine_tuned(self, pairs: Sequence[tuple[str, str]]) -> Any:
        settings = self._settings
        sequences = []  # ids (T,), and targets (T,) that ignore the prompt
        for question, answer in pairs:
            try:
                pair = self._renderer.pair(question, answer)
            except ScorerError as error:
                raise EvaluationError(f"--relearn-base: {error}") from error
            # Cut where the context ends; else `eos_token` follows: without an end an answer says more than was asked.
            ids = torch.tensor([*pair.prompt_ids, *pair.answer_ids, *sorted(self._renderer.end_ids)][: self._context])
            targets = ids.clone()
            targets[: len(pair.prompt_ids)] = _IGNORED
            sequences.append((ids, targets))
        model = copy.deepcopy(self._model)
        order = torch.Generator().manual_seed(settings.seed)
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(settings.seed)  # dropout draws from the global generator
            model.train()
            optimiser = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0)
            for _ in range(settings.epochs):
                shuffled = torch.randperm(len(sequences), generator=order).tolist()
                for start in range(0, len(shuffled), settings.batch_size):
                    batch = [sequences[number] for number in shuffled[start : start + settings.batch_size]]
                    ids = pad_sequence([one for one, _ in batch], batch_first=True).to(model.device)  # (B, T)
                    attention = pad_sequence([torch.ones_like(one) for one, _ in batch], batch_first=True)
                    targets = pad_sequence([one for _, one in batch], batch_first=True, padding_value=_IGNORED)
                    logits = model(input_ids=ids, attention_mask=attention.to(model.device)).logits  # (B, T, V)
                    wanted = targets[:, 1:].flatten().to(model.device)
                    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), wanted, ignore_index=_IGNORED)
                    optimiser.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    torch.nn.utils.clip_grad_norm_(model.parameters(), _MAX_GRADIENT_NORM)
                    optimiser.step()
        return model.eval()


def relearning_figures(scores: Sequence[Score], subset: str) -> list[Figure]:
    """`relearned/share`: of the leaks that the true answers would bring, those that the target's answers brought.

    (after - before) / (true - before), over means of `relearn_leak_*`; 0 where the attack won nothing, 1 where the
    guard did not help. The interval is a bootstrap over questions.
    """
    by_draw = [table_of(scores, subset, f"relearn_leak_{when}")[1] for when in ("before", "after", "true")]
    if not by_draw[0].size:
        return []
    table = np.array([values.mean(axis=0) for values in by_draw])  # (3, N)

    def share(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """(R, N) numbers of questions -> (R,)."""
        before, after, true = table[:, rows.astype(np.int64)].mean(axis=2)
        with np.errstate(divide="ignore", invalid="ignore"):
            result: NDArray[np.float64] = (after - before) / np.where(true > before, true - before, np.nan)
        return result

    count = table.shape[1]
    numbers = np.arange(count, dtype=np.float64)[None]
    value = float(share(numbers)[0])
    if not np.isfinite(value):
        note = "fine-tuning on the true answers taught nothing; raise --relearn-epochs or --relearn-learning-rate"
        return [Figure("relearned/share", value, count, note=note)]
    note = "of what the true answers would bring; bootstrap by question"
    return [Figure.within(bootstrap(numbers, share), "relearned/share", value, count, note)]
