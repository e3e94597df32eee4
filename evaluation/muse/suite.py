"""MUSE (Shi et al. 2024, arXiv 2407.06460): four of its six criteria on one model; the other two are runs side by side.

C1, no verbatim memorisation (`forget/verbmem`): ROUGE-L F1 of how the model goes on with a text of the forget set.
C2, no knowledge memorisation (`forget/knowmem`): ROUGE-L F1 of its answers to questions about that set.
C3, no privacy leakage (`priv_leak`): how far Min-40% tells forget set from holdout set, against a retain model.
C4, utility (`retain/knowmem`): C2's figure on the set that is to be kept.
C5 and C6, scalability and sustainability, are these figures of models that have unlearned more, or again and again:
`fold` says which forget set that was, and a report draws the runs of several.

Definitions are those of muse_bench's code (`eval.py`, `metrics/`), which was read; the paper was not. Shares are in
[0, 1] here and in per cent there. PrivLeak compares with the AUC of the retain model's own run, where that code has
constants for its authors' models. `evaluation.muse.prompts` says where texts are divided otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from evaluation.errors import DataError
from evaluation.leakage import metrics
from evaluation.muse.data import Item, read_fold, read_items, set_source
from evaluation.muse.prompts import (
    STOPS,
    cut_answer,
    first_tokens,
    likeness,
    open_tokenizer,
    question_prompt,
)
from evaluation.replies import Ask, Asker, Reply
from evaluation.rows import drawn
from evaluation.suite import Answer, Figure, Outcome, Score, Suite, scores_of, spread
from storage.digests import sha256_of_json

MusePart = Literal["verbmem_f", "knowmem_f", "privleak", "knowmem_r"]
MUSE_PARTS: Final[tuple[MusePart, ...]] = get_args(MusePart)
"""The metrics of MUSE's `eval.py`, by its names: C1, C2, C3 and C4."""

#: Sets of each part, by config and split.
_SETS: Final[Mapping[MusePart, tuple[tuple[str, str], ...]]] = {
    "verbmem_f": (("verbmem", "forget"),),
    "knowmem_f": (("knowmem", "forget_qa"),),
    "privleak": (("privleak", "forget"), ("privleak", "holdout")),
    "knowmem_r": (("knowmem", "retain_qa"),),
}
_COLUMNS: Final = {"verbmem": ("prompt", "gt"), "knowmem": ("question", "answer"), "privleak": ("text",)}
#: What a table shows first of each part.
FIGURES: Final[Mapping[MusePart, str]] = {
    "verbmem_f": "forget/verbmem",
    "knowmem_f": "forget/knowmem",
    "privleak": "priv_leak",
    "knowmem_r": "retain/knowmem",
}


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is asked of one row, and what the reply is compared with: `reference`."""

    config: str
    subset: str
    item: Item
    ask: Ask
    reference: str


class MuseSuite(Suite):
    """MUSE on one corpus.

    Metrics: `verbmem` and `knowmem`, ROUGE-L F1, with ROUGE-1 F1 beside them; and of whole texts the membership scores
    `mia_loss`, `mia_zlib` and `mia_min_40`. Figures: the area under the ROC curve of each of these, and `priv_leak`.

    Args:
        corpus: "news" or "books".
        data: see `evaluation.muse.data.set_source`; None: the hub's.
        parts: which of `MUSE_PARTS`; None: all that can be measured.
        fold: which of `evaluation.muse.data.FOLDS` the target has unlearned; None: MUSE's own forget set.
        tokenizer: the target's, a folder or hub id; needed by verbmem_f.
        verbmem_tokens: of a continuation, generated and compared.
        knowmem_tokens: of an answer.
        limit: rows of each set, drawn with `seed`; None: all. What is shown before questions is never cut.
        generated_only: leave out privleak, for a target that gives no log-probabilities.

    Raises:
        DataError: an option or a set cannot be used, or the tokenizer cannot be loaded.
    """

    name = "muse"
    # PrivLeak has none: 0 is best, and on either side something leaks.
    directions: Mapping[str, str] = {
        **{f"forget/{metric}{more}": "down" for metric in ("verbmem", "knowmem") for more in ("", "_rouge_1")},
        "retain/knowmem": "up",
        "retain/knowmem_rouge_1": "up",
    }

    def __init__(
        self,
        corpus: str,
        *,
        data: str | None = None,
        parts: Sequence[str] | None = None,
        fold: str | None = None,
        tokenizer: str | None = None,
        verbmem_tokens: int = 128,
        knowmem_tokens: int = 32,
        limit: int | None = None,
        seed: int = 0,
        generated_only: bool = False,
    ) -> None:
        for option, tokens in (("--verbmem-tokens", verbmem_tokens), ("--knowmem-tokens", knowmem_tokens)):
            if tokens < 1:
                raise DataError(f"{option}: {tokens} leaves no answer; give 1 or more")
        self._parts = _chosen(parts, generated_only=generated_only)
        self._verbmem_tokens, self._knowmem_tokens = verbmem_tokens, knowmem_tokens
        sets = [one for part in self._parts for one in _SETS[part]]
        rows: dict[tuple[str, str], list[Item]] = {}
        shown: dict[str, list[Item]] = {}
        for config, split in sets:
            found = read_items(set_source(corpus, data, config, split), _COLUMNS[config])
            rows[config, split] = drawn(found, limit, seed)
            if config == "knowmem":
                shown[split] = read_items(set_source(corpus, data, config, f"{split}_icl"), _COLUMNS[config])
        unlearned = [] if fold is None else read_fold(corpus, data, fold)
        cut_by = open_tokenizer(tokenizer) if "verbmem_f" in self._parts else None
        self._asked = {
            f"{config}/{split}/{item.example}": self._asked_of(config, split, item, shown.get(split, ()), cut_by)
            for (config, split), items in rows.items()
            for item in items
        }
        self._settings = {"corpus": corpus, "fold": fold, "limit": limit, "seed": seed}
        self._fold = {"texts": len(unlearned), "sha256": sha256_of_json([item.wanted for item in unlearned])}
        self.headline = tuple(FIGURES[part] for part in self._parts)

    def describe(self) -> Mapping[str, object]:
        data: dict[str, object] = {}
        for name in dict.fromkeys(key.rpartition("/")[0] for key in self._asked):
            mine = [one for key, one in self._asked.items() if key.rpartition("/")[0] == name]
            asked = [[one.item.example, one.ask.prompt, one.ask.answer, one.reference] for one in mine]
            data[name.replace("/", "_")] = {"examples": len(mine), "sha256": sha256_of_json(asked)}
        if fold := self._settings["fold"]:  # by its name: runs of different folds stand side by side
            data[f"fold_{fold}".replace(":", "_")] = self._fold
        return {
            "suite": self.name,
            **self._settings,
            "parts": list(self._parts),
            "verbmem_tokens": self._verbmem_tokens,
            "knowmem_tokens": self._knowmem_tokens,
            "data": data,
        }

    def probe(self) -> Sequence[Ask]:
        """A few of each kind; what is scored first, since a guard shows there."""
        of_config = {
            config: [one.ask for one in self._asked.values() if one.config == config]
            for config in ("privleak", "verbmem", "knowmem")
        }
        return [ask for asks in of_config.values() if asks for ask in spread(asks)]

    def measure(self, ask: Asker) -> Outcome:
        replies = ask({key: one.ask for key, one in self._asked.items()}, f"muse {self._settings['corpus']}")
        scores: list[Score] = []
        answers: list[Answer] = []
        for key, one in self._asked.items():
            reply = replies[key]
            if one.config == "privleak":
                scores += scores_of(one.subset, one.item.example, _membership(one, reply))
                continue
            text = cut_answer(reply.text) if one.config == "knowmem" else reply.text
            scores += scores_of(one.subset, one.item.example, likeness(one.config, one.reference, text))
            answers.append(Answer(one.subset, one.item.example, one.item.given, text, one.reference))
        return Outcome(tuple(scores), tuple(answers))

    def figures(self, scores: Sequence[Score], reference: Sequence[Score] | None) -> list[Figure]:
        return [*metrics.auc_figures(scores), *metrics.priv_leak_figures(scores, reference)]

    def _asked_of(self, config: str, split: str, item: Item, shown: Sequence[Item], tokenizer: Any) -> _Asked:
        subset, wanted = split.removesuffix("_qa"), item.wanted
        if config == "verbmem":
            ask = Ask(item.given, style="text", max_new_tokens=self._verbmem_tokens)
            wanted = first_tokens(wanted, tokenizer, self._verbmem_tokens)
        elif config == "knowmem":
            prompt = question_prompt(shown, item.given)
            ask = Ask(prompt, style="text", max_new_tokens=self._knowmem_tokens, stop=STOPS)
        else:
            ask = Ask("", answer=wanted, style="whole")
        return _Asked(config, subset, item, ask, wanted)


def _chosen(parts: Sequence[str] | None, *, generated_only: bool) -> tuple[MusePart, ...]:
    """The parts that are measured, in the order of `MUSE_PARTS`."""
    if unknown := [part for part in parts or () if part not in MUSE_PARTS]:
        raise DataError(f"--parts: {unknown[0]!r} is none of {', '.join(MUSE_PARTS)}")
    if parts and "privleak" in parts and generated_only:
        raise DataError("--parts: privleak scores given texts; leave it out, or leave out --generated-only")
    possible = [part for part in MUSE_PARTS if part != "privleak" or not generated_only]
    return tuple(part for part in possible if part in (parts or possible))


def _membership(asked: _Asked, reply: Reply) -> dict[str, float]:
    """How likely a text is a member's: MUSE's scores PPL, PPL/zlib and Min-40%, with the sign turned."""
    return {
        "mia_loss": metrics.likelihood(reply.logprobs),
        "mia_zlib": metrics.zlib_ratio(reply.logprobs, asked.item.wanted),
        metrics.PRIVLEAK_METRIC: metrics.min_k(reply.logprobs, metrics.PRIVLEAK_K),
    }
