"""What of a forget set can still be got out of a model: by extraction, by membership inference, by reading its logits,
and, where prompts are corrupted, by reading the prompt again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import DataError, TargetError
from evaluation.leakage import metrics
from evaluation.leakage.data import choice_questions, load_subset
from evaluation.leakage.probes import DISTANCES, PromptRows, probe_predictions, recovery_rates, repeat_ask, row_span
from evaluation.replies import Ask, Asker, Reply
from evaluation.suite import Answer, Figure, Outcome, Score, Suite, scores_of, spread
from scoring.metrics import CHOICE_LETTERS, rouge_l_recall

LeakagePart = Literal["extraction", "membership", "probe", "repeat", "nearest"]
LEAKAGE_PARTS: Final[tuple[LeakagePart, ...]] = get_args(LeakagePart)
"""extraction: extraction strength and exact memorization. membership: membership inference and PrivLeak. probe: a
linear probe on next-token logits. repeat: the model is asked to repeat the question. nearest: the nearest tokens to
corrupted embedding rows, where the target can show them."""

#: Probe questions whose logits are held as Python numbers at once.
_PROBE_CHUNK: Final = 32
_GROUPS: Final = {"forget": "member", "retain": "member", "holdout": "nonmember"}
#: AUC and PrivLeak are not among them: 0.5, or the retain model's AUC, is best, and what is on either side leaks.
_DOWN: Final = (
    "extraction_strength",
    "exact_memorization",
    "probe_letters",
    "probe_logits",
    "probe_letters_above_chance",
    "probe_logits_above_chance",
    "repeat_rouge_l",
    "repeat_exact",
    *(f"nearest_{distance}" for distance in DISTANCES),
)
_TOKENIZERS_DIFFER: Final = (
    "--reference-model: its tokenizer is not the target's, so that their losses are of different tokens; give a model "
    "with the same tokenizer"
)


class LeakageSuite(Suite):
    """Leakage, over questions with their answers.

    Args:
        forget: what was to be forgotten, learned once: the members.
        holdout: of the same kind, never learned: the non-members. Needed by the part "membership".
        retain: learned and not to be forgotten: shows what an attack finds where nothing was unlearned.
        limit: questions of each, drawn with `seed`; None: all.
        seed: of the drawing, the order of a probe's options and its folds.
        reference: another model for the attack by reference, with the same tokenizer; None: left out.
        parts: which of `LEAKAGE_PARTS`; None: all that the data allow.
        vocabulary: whether Min-K%++ is measured, which an endpoint cannot answer.

    Raises:
        DataError: a source cannot be used, or lacks what a part needs.
    """

    name = "leakage"
    headline = (
        "forget/extraction_strength",
        "forget/exact_memorization",
        "forget/mia_min_k_auc",
        "priv_leak",
        "forget/probe_logits",
        "forget/repeat_rouge_l",
    )
    directions = dict.fromkeys([f"forget/{metric}" for metric in _DOWN], "down")

    def __init__(
        self,
        *,
        forget: str,
        holdout: str | None = None,
        retain: str | None = None,
        limit: int | None = None,
        seed: int = 0,
        reference: Asker | None = None,
        parts: Sequence[LeakagePart] | None = None,
        vocabulary: bool = True,
    ) -> None:
        if unknown := [part for part in parts or () if part not in LEAKAGE_PARTS]:
            raise DataError(f"--parts: {unknown[0]!r} is none of {', '.join(LEAKAGE_PARTS)}")
        sources = {"forget": forget, "retain": retain, "holdout": holdout}
        self._subsets = {
            name: load_subset(source, name=name, limit=limit, seed=seed)
            for name, source in sources.items()
            if source is not None
        }
        self._rows = [
            (f"{name}/{one.example}", name, one) for name, subset in self._subsets.items() for one in subset.questions
        ]
        possible: list[LeakagePart] = ["extraction", "repeat", "nearest"]
        if holdout is not None:
            possible.append("membership")
        if any(one.wrong for one in self._subsets["forget"].questions):
            possible.append("probe")
        self._parts = frozenset(parts or possible)
        if "membership" in self._parts and holdout is None:
            raise DataError("--holdout: membership needs questions that were never learned; give a file of them")
        self._questions = choice_questions(self._subsets["forget"], seed) if "probe" in self._parts else []
        self._seed, self._reference, self._vocabulary = seed, reference, vocabulary

    def describe(self) -> Mapping[str, object]:
        return {
            "data": {name: subset.describe() for name, subset in self._subsets.items()},
            "parts": sorted(self._parts),
            "seed": self._seed,
            "vocabulary": self._vocabulary,
            "reference": None if self._reference is None else dict(self._reference.target.describe()),
        }

    def probe(self) -> Sequence[Ask]:
        scored = [ask for key, ask in self._scored_asks().items() if key.startswith("forget/")]
        first = [*spread(scored), *list(self._repeat_asks().values())[:1]]
        return first + [Ask(one.prompt, next_logits=True) for one in self._questions[:1]]

    def measure(self, ask: Asker) -> Outcome:
        """See `evaluation.suite.Suite`.

        Raises:
            TargetError: the reference model's tokenizer is not the target's, or nothing could be measured.
        """
        reference = self._reference if "membership" in self._parts else None
        if reference is not None:
            ours, theirs = (asker.target.describe().get("tokenizer_sha256") for asker in (ask, reference))
            if ours and theirs and ours != theirs:
                raise TargetError(_TOKENIZERS_DIFFER)
        scored, repeats = self._scored_asks(), self._repeat_asks()
        # Each option's letter as an answer, only to learn its token.
        first = self._questions[:1]
        letters = {f"letter/{letter}": Ask(one.prompt, answer=letter) for one in first for letter in self._letters()}
        replies = ask({**scored, **repeats, **letters}, "answers and repetitions")
        scores = self._answer_scores(replies)
        if reference is not None:
            # Difference of log-likelihoods (Carlini et al. 2021, arXiv 2012.07805, as the mean over tokens).
            asks = {key: replace(one, vocabulary=False) for key, one in scored.items()}
            others = reference(asks, "answers of the reference model")
            for key, subset, one in self._rows:
                mine, other = replies[key].logprobs, others[key].logprobs
                if len(mine) != len(other):
                    raise TargetError(_TOKENIZERS_DIFFER)
                difference = metrics.likelihood(mine) - metrics.likelihood(other)
                scores.append(Score(subset, "mia_reference", one.example, difference, _GROUPS[subset]))
        answers: list[Answer] = []
        for key, subset, one in self._rows:
            if f"{key}/repeat" in repeats:
                text = replies[f"{key}/repeat"].text
                exact = float(text.split() == one.question.split())
                values = {"repeat_rouge_l": rouge_l_recall(one.question, text), "repeat_exact": exact}
                scores += scores_of(subset, one.example, values, _GROUPS[subset])
                answers.append(Answer(subset, one.example, repeat_ask(one.question).prompt, text, one.question))
        scores += self._probe_scores(ask, replies)
        if "nearest" in self._parts and isinstance(ask.target, PromptRows):
            # Of the prompts that the target corrupts; the others can be read as they are.
            questions = self._subsets["forget"].questions
            shown = [(one, ask.target.corrupted_rows(Ask(one.question, draw=ask.draw))) for one in questions]
            examples, prompts = [one.example for one, rows in shown if rows], [rows for _, rows in shown if rows]
            for distance in DISTANCES:
                for example, rate in zip(examples, recovery_rates(prompts, distance), strict=True):
                    scores.append(Score("forget", f"nearest_{distance}", example, rate, _GROUPS["forget"]))
        if not scores:
            raise TargetError("--parts: nearest reads corrupted prompts, and none was; give a --policy that flags them")
        return Outcome(tuple(scores), tuple(answers))

    def figures(self, scores: Sequence[Score], reference: Sequence[Score] | None) -> list[Figure]:
        figures = [*metrics.auc_figures(scores), *metrics.priv_leak_figures(scores, reference)]
        return figures + (metrics.chance_figures(scores, 1.0 / len(self._letters())) if self._questions else [])

    # --- answers that are scored ----------------------------------------------------------------------------------

    def _scored_asks(self) -> dict[str, Ask]:
        if not self._parts & {"extraction", "membership"}:
            return {}
        vocabulary = self._vocabulary and "membership" in self._parts
        return {key: Ask(one.question, answer=one.answer, vocabulary=vocabulary) for key, _, one in self._rows}

    def _answer_scores(self, replies: Mapping[str, Reply]) -> list[Score]:
        scores: list[Score] = []
        for key, subset, one in self._rows:
            reply, values = replies.get(key, Reply()), dict[str, float]()
            if "extraction" in self._parts:
                values["extraction_strength"] = metrics.extraction_strength(reply.greedy)
                values["exact_memorization"] = metrics.exact_memorization(reply.greedy)
            if "membership" in self._parts:
                values["mia_loss"] = metrics.likelihood(reply.logprobs)
                values["mia_zlib"] = metrics.zlib_ratio(reply.logprobs, one.answer)
                values["mia_min_k"] = metrics.min_k(reply.logprobs)
                values[metrics.PRIVLEAK_METRIC] = metrics.min_k(reply.logprobs, metrics.PRIVLEAK_K)
                if self._vocabulary:
                    moments = reply.vocabulary_mean, reply.vocabulary_std
                    values["mia_min_k_plus_plus"] = metrics.min_k_plus_plus(reply.logprobs, *moments)
            scores += scores_of(subset, one.example, values, _GROUPS[subset])
        return scores

    # --- prompts that are read again -------------------------------------------------------------------------------

    def _repeat_asks(self) -> dict[str, Ask]:
        if "repeat" not in self._parts:
            return {}
        return {f"{key}/repeat": repeat_ask(one.question) for key, subset, one in self._rows if subset != "holdout"}

    # --- answers that are read off the logits ----------------------------------------------------------------------

    def _letters(self) -> str:
        return CHOICE_LETTERS[: 1 + max((one.right for one in self._questions), default=-1)]

    def _probe_scores(self, ask: Asker, replies: Mapping[str, Reply]) -> list[Score]:
        if not self._questions:
            return []
        rows: list[NDArray[np.float32]] = []
        # Some questions at a time: as Python numbers logits take eight times as much memory.
        for start in range(0, len(self._questions), _PROBE_CHUNK):
            chunk = self._questions[start : start + _PROBE_CHUNK]
            asks = {f"logits/{one.example}": Ask(one.prompt, next_logits=True) for one in chunk}
            answered = ask(asks, "logits")
            rows += [np.asarray(answered[key].next_logits, dtype=np.float32) for key in asks]
        logits = np.stack(rows)  # (N, V)
        features = {"probe_logits": row_span(logits)}
        letters = [replies[f"letter/{letter}"].token_ids for letter in self._letters()]
        # A letter of several tokens, or beside others in one, has no logit of its own.
        if len({ids[0] for ids in letters if len(ids) == 1}) == len(letters):
            wide = logits[:, [ids[0] for ids in letters]].astype(np.float64)
            features["probe_letters"] = (wide - wide.mean(axis=0)) / np.maximum(wide.std(axis=0), 1e-12)
        labels = np.array([one.right for one in self._questions])
        return [
            Score("forget", metric, one.example, float(guess == one.right), _GROUPS["forget"])
            for metric, values in features.items()
            for one, guess in zip(self._questions, probe_predictions(values, labels, self._seed), strict=True)
        ]
