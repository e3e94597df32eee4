"""What a build found, in plain words: which examples are misjudged, how much the numbers can say, and whether it is
enough."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from classifiers import Example
from classifiers.calibration.threshold import clopper_pearson
from classifiers.prompt_classifier import ClassifierInfo, PromptClassifier, flags_prompts
from optimizer.corruption_search import FoundCorruption
from optimizer.errors import BuildError
from optimizer.forget_quality import ForgetQuality
from optimizer.guarded_answers import GuardedAnswers

#: Of a retain set at most so many are judged one by one, drawn with the seed: all of a large one would take minutes.
_MOST_JUDGED: Final = 2000
_MOST_LISTED: Final = 10
_LONGEST_PROMPT: Final = 120
#: Below this recall may lie even where every example is flagged, the set is called small.
_SURE_RECALL: Final = 0.8
#: Of the way from what the model knows to what one that never learned scores: from here on it is called most of it.
_MOST_OF_THE_WAY: Final = 0.9
#: Below it a two-sample test is usually said to tell the samples apart.
_TELLING_P: Final = 0.05
_METRIC_WORDS: Final = {
    "answer_probability": "the probability of the right answer",
    "rouge_l": "the overlap with the right answer (ROUGE-L recall)",
    "truth_ratio": "the truth ratio",
    "choice_accuracy": "the share of right choices",
}


@dataclass(frozen=True)
class Misjudged:
    """Examples that a gateway would misjudge, asked as they stand.

    Attributes:
        missed, flagged: numbers, from 1, of forget examples that pass, and of retain examples that are flagged.
        forget, retain: how many of each set were judged.
    """

    missed: tuple[int, ...]
    flagged: tuple[int, ...]
    forget: int
    retain: int

    @classmethod
    def of(
        cls,
        classifier: PromptClassifier,
        forget: Sequence[Example],
        retain: Sequence[Example],
        *,
        reads_answers: bool,
        seed: int,
    ) -> "Misjudged":
        """`reads_answers`: whether the gateway will; one that does not guesses where nobody is named."""

        def flags(examples: Sequence[Example]) -> NDArray[np.bool_]:
            prompts = [example.prompt for example in examples]
            if reads_answers:
                return flags_prompts(classifier, prompts)
            return classifier.scores(prompts) >= classifier.threshold

        drawn = sorted(np.random.default_rng(seed).permutation(len(retain))[:_MOST_JUDGED].tolist())
        asked, kept = flags(forget), flags([retain[number] for number in drawn])
        return cls(
            missed=tuple(int(number) + 1 for number in np.flatnonzero(~asked)),
            flagged=tuple(number + 1 for number, hit in zip(drawn, kept.tolist(), strict=True) if hit),
            forget=len(forget),
            retain=len(drawn),
        )

    def as_dict(self) -> dict[str, Any]:
        """For a report: numbers of examples, and no text of them."""
        return {
            "forget": {"examples": self.forget, "missed": list(self.missed)},
            "retain": {"examples": self.retain, "flagged": list(self.flagged)},
        }

    def lines(self, forget: Sequence[Example], retain: Sequence[Example]) -> Iterator[str]:
        """The misjudged examples with their prompts, and what helps; nothing where there are none."""
        if self.missed:
            yield f"missed: {len(self.missed)} of {self.forget} prompts to forget would pass"
            yield from _listed(self.missed, forget)
            yield (
                "  what helps: more examples of the same subject that name it, questions in reverse (Who …?), other "
                "phrasings; --augment-with URL has a served model write them"
            )
        if self.flagged:
            yield f"falsely flagged: {len(self.flagged)} of {self.retain} prompts to keep would be corrupted"
            yield from _listed(self.flagged, retain)
            yield (
                "  what helps: more examples to keep that are close to these; a lower --level; --scope entities, "
                "which corrupts names alone"
            )

    def check(self) -> None:
        """Raise `BuildError` where any example is misjudged: for --strict."""
        if self.missed or self.flagged:
            raise BuildError(
                f"--strict: {len(self.missed)} of {self.forget} prompts to forget are missed and {len(self.flagged)} "
                f"of {self.retain} to keep are flagged (listed above); change the examples, or leave --strict out"
            )


def _listed(numbers: Sequence[int], examples: Sequence[Example]) -> Iterator[str]:
    for number in numbers[:_MOST_LISTED]:
        prompt = " ".join(examples[number - 1].prompt.split())
        shown = prompt if len(prompt) <= _LONGEST_PROMPT else f"{prompt[:_LONGEST_PROMPT]} …"
        yield f"  example {number}: {shown}"
    if len(numbers) > _MOST_LISTED:
        yield f"  and {len(numbers) - _MOST_LISTED} more; report.json has the numbers of all"


def small_set_warning(forget: int) -> str | None:
    """That so few examples cannot show a high recall; None where they can."""
    low, _ = clopper_pearson(forget, forget)
    if low >= _SURE_RECALL:
        return None
    examples = "one example" if forget == 1 else f"{forget} examples"
    return (
        f"warning: {examples} to forget are few: even if all are flagged, the share of other questions about them "
        f"that is may be as low as {low:.0%} (95 % interval); write more, or let a served model: --augment-with URL"
    )


def mixture_warning(info: ClassifierInfo, retain: int) -> str | None:
    """That the guarantee is about more than the retain set's kind of prompt; None where it is not."""
    negatives = str(info.calibration.get("calibration_negatives", ""))
    if "everyday" not in negatives:
        return None
    return (
        f"warning: {retain} examples to keep are too few to calibrate on alone, so the guarantee is about a mixture: "
        f"{negatives}. It says little about prompts close to what is forgotten; about 500 examples make it theirs"
    )


def search_line(found: FoundCorruption) -> str:
    """What the search reached, and whether that is enough."""
    result = found.result
    if found.forget_quality is not None:
        return _quality_line(found, found.forget_quality)
    known = float(found.objective.uncorrupted().values.mean())
    value, wanted = result.best.value, result.retained_value
    metric = _METRIC_WORDS[found.task.metric]
    if known <= wanted + result.settings.tolerance:
        return (
            f"forgetting: the model does not seem to know this: {metric} is {known:.3f} without any corruption, and a "
            f"model that never learned scores {wanted:.3f}. Check --model, and the answers in --forget"
        )
    done = f"forgetting: the corruption brings {metric} from {known:.3f} to {value:.3f}"
    way = (known - value) / (known - wanted)
    if result.reached:
        return f"{done}; a model that never learned scores {wanted:.3f}. Reached: enough"
    if way > 1:
        return f"{done}; a model that never learned scores {wanted:.3f}. More than was asked; lower --min-strength"
    if way >= _MOST_OF_THE_WAY:
        return (
            f"{done}; a model that never learned scores {wanted:.3f}. That is {way:.0%} of the way, and no strength "
            "comes nearer: enough if the answers no longer tell, so read some"
        )
    return (
        f"{done}; a model that never learned scores {wanted:.3f}. Only {way:.0%} of the way: NOT ENOUGH; try a higher "
        "--max-strength, other --methods, or --retain-model"
    )


def _quality_line(found: FoundCorruption, quality: ForgetQuality) -> str:
    result, least = found.result, min(quality.p_values)
    if found.objective.uncorrupted_value <= result.retained_value + result.settings.tolerance:
        return (
            "forgetting: the model does not seem to know this: its truth ratios lie as those of the "
            f"{quality.reference} without any corruption. Check --model, and the answers in --forget"
        )
    if result.reached and least >= _TELLING_P:
        return f"{quality}. Reached: enough"
    if result.reached:
        return f"{quality}. NOT ENOUGH under every noise: try a method without any, such as add_value_first_n"
    return (
        f"{quality}. NOT ENOUGH: the two sets of ratios are {result.best.distance:.3f} apart, and p is about 0.5 at "
        f"{result.settings.tolerance:.3f}; try other --methods, --dims, --scope or strengths"
    )


def answers_line(name: str, answers: GuardedAnswers) -> str:
    """What a set's answers, as generated, keep of the right ones."""
    aim = "forget: less is better" if name == "forget" else "keep: the same is best"
    return (
        f"answers to {aim}: {_METRIC_WORDS[answers.metric]} is {answers.guarded:.3f} with the policy, "
        f"{answers.unguarded:.3f} without ({answers.flagged} of {answers.examples} prompts flagged)"
    )


def next_steps(model: str, out: Path) -> list[str]:
    """Commands to go on with."""
    return [
        f"next: eco policy show {out}    what was built and measured; eco policy report {out} draws it",
        f"      eco serve {model} --policy {out}",
        '      eco policy try "…"    asks the running server what it makes of a prompt of your own',
    ]
