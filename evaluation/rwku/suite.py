"""RWKU (Jin et al. 2024, arXiv 2406.10890): is a person forgotten, what is near them kept, and the rest unharmed?

What this suite does otherwise than the public code:

- Its templates put one token of beginning before a prompt; there the tokenizer adds a second one.
- An answer ends where the model ends it. The public code also names line breaks as ends, but looks their tokens up by
  these characters, under which byte-level vocabularies such as Llama 3's have none.
- A given answer's tokens are encoded apart from the prompt's, and a letter of several tokens counts with all of them.
- The mean over several people weighs their probes alike, as there in the batch setting. The paper's tables are means
  over runs of one person each.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Final

from evaluation.errors import DataError
from evaluation.intervals import mean_figures
from evaluation.replies import Ask, Asker
from evaluation.rows import drawn
from evaluation.rwku.data import LEVELS, MEMBERSHIP, load_rows
from evaluation.rwku.metrics import sentence_splitter_installed
from evaluation.rwku.probes import SCORED, Manner, Probe, entropy_name, probe_of
from evaluation.suite import Answer, Figure, Outcome, Score, Suite, scores_of, spread
from storage.digests import sha256_of_json

_ATTACKS: Final = "forget_level3"
_MIA: Final = ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus")
_ENTROPIES: Final = tuple(entropy_name(split_sentences=split) for split in (True, False))
#: Set -> its metrics, the one that stands for it first.
_METRICS: Final[Mapping[str, tuple[str, ...]]] = {
    **dict.fromkeys(LEVELS, ("rouge_l",)),
    **dict.fromkeys(MEMBERSHIP, _MIA),
    "utility_general": ("acc",),
    "utility_reason": ("exact_match",),
    "utility_truthfulness": ("mc1", "mc2"),
    "utility_factuality": ("f1", "exact_match"),
    "utility_fluency": _ENTROPIES,
}
#: Levels that are also taken together.
_TOGETHER: Final = ("forget", "neighbor")


class RwkuSuite(Suite):
    """Subsets are the sets, `evaluation.rwku.data.SETS`.

    Metrics of a probe: `rouge_l` (levels); `mia_loss`, `mia_zlib`, `mia_min_k` and, on request, `mia_min_k_plus_plus`
    (membership inference, which rise with how likely a text is); `acc`, `exact_match`, `mc1` and `mc2`, `f1`, and
    `entropy` in bits, which is `entropy_unsplit` without nltk's punkt_tab data (utility). Figures beside their means:
    of level 3 by kind of attack, and of all levels of `forget` and of `neighbor` together.

    Args:
        data, sets, subjects: see `evaluation.rwku.data.load_rows`.
        limit: probes of each set at most, drawn with `seed`; None: all.
        generated_only: leave out the sets in which given answers are scored.
        vocabulary: measure `mia_min_k_plus_plus` too, which no server can answer.
        prefill: whether the answer is begun for the model, as in the public code; False: its beginning ("Answer:")
            ends the question, for servers that cannot go on with one.

    Raises:
        DataError: data or options cannot be used; files and columns are checked here.
    """

    name = "rwku"
    unbounded_metrics: Collection[str] = (*_MIA, *_ENTROPIES)

    def __init__(
        self,
        data: str | None = None,
        *,
        sets: Sequence[str] = (),
        subjects: Sequence[str] = (),
        limit: int | None = None,
        seed: int = 0,
        generated_only: bool = False,
        vocabulary: bool = False,
        prefill: bool = True,
    ) -> None:
        if generated_only and (scored := [name for name in sets if name in SCORED]):
            raise DataError(f"--sets: {scored[0]} scores given answers, which --generated-only leaves out")
        rows = load_rows(data, sets=sets, without=SCORED if generated_only else (), subjects=subjects)
        manner = Manner(prefill, vocabulary, sentence_splitter_installed())
        self._probes: dict[str, list[Probe]] = {}
        for name, found in rows.items():
            of_person: defaultdict[object, int] = defaultdict(int)
            probes = []
            for where, row in found:
                probes.append(probe_of(name, of_person[row["subject"]], where, row, manner))
                of_person[row["subject"]] += 1
            self._probes[name] = drawn(probes, limit, seed)
        people = dict.fromkeys(str(row["subject"]) for found in rows.values() for _, row in found)
        self._settings: dict[str, object] = {"subjects": list(people), "limit": limit, "seed": seed, **asdict(manner)}
        self.headline = self._headline()
        kinds = dict.fromkeys(probe.group for probe in self._probes.get(_ATTACKS, ()))
        self.directions = {
            **{f"{name}/{metric}": _better(name) for name in rows for metric in _METRICS[name]},
            **{f"{name}/rouge_l": _better(name) for name in _TOGETHER},
            **{f"{_ATTACKS}/rouge_l/{kind}": "down" for kind in kinds},
        }

    def describe(self) -> Mapping[str, object]:
        data = {
            name: {"probes": len(probes), "sha256": sha256_of_json([[one.id, one.reference] for one in probes])}
            for name, probes in self._probes.items()
        }
        return {"suite": self.name, "data": data, **self._settings}

    def probe(self) -> Sequence[Ask]:
        """Several of the first set, which are of the forgotten person, and one of each other."""
        first, *others = self._probes.values()
        some = [*spread(first), *(probes[0] for probes in others)]
        return [ask for one in some for ask in one.asks.values()]

    def measure(self, ask: Asker) -> Outcome:
        keyed = [(f"{name}/{one.id}", name, one) for name, probes in self._probes.items() for one in probes]
        asks = {f"{key}/{part}": asked for key, _, one in keyed for part, asked in one.asks.items()}
        replies = ask(asks, self.name)
        scores: list[Score] = []
        answers: list[Answer] = []
        for key, name, one in keyed:
            mine = {part: replies[f"{key}/{part}"] for part in one.asks}
            scores += scores_of(name, one.id, one.values(mine), one.group)
            if not one.scores:
                answers.append(Answer(name, one.id, one.question, mine["generated"].text, one.reference))
        return Outcome(tuple(scores), tuple(answers))

    def figures(self, scores: Sequence[Score], reference: Sequence[Score] | None) -> list[Figure]:
        """ROUGE-L recall over all levels of a set, and of level 3 by kind of attack."""
        del reference
        levels = [score for score in scores if score.metric == "rouge_l"]
        together = [
            replace(score, subset=name, example=f"{score.subset}/{score.example}")
            for name in _TOGETHER
            for score in levels
            if score.subset.startswith(name)
        ]
        by_kind = [replace(score, metric=f"rouge_l/{score.group}") for score in levels if score.subset == _ATTACKS]
        note = "over the probes of all its levels that were asked"
        return [*(replace(figure, note=note) for figure in mean_figures(together)), *mean_figures(by_kind)]

    def _headline(self) -> list[str]:
        fluency = entropy_name(split_sentences=bool(self._settings["split_sentences"]))
        names = [f"{name}/{fluency if name == 'utility_fluency' else _METRICS[name][0]}" for name in self._probes]
        together = [f"{name}/rouge_l" for name in _TOGETHER if any(one.startswith(name) for one in self._probes)]
        return [*together, *names]


def _better(name: str) -> str:
    return "down" if name.startswith(("forget", "mia_forget")) else "up"
