"""Tasks made of questions: TOFU, WMDP and subsets of MMLU (ECO, arXiv 2406.07933, section 4 and appendix).

Every preset keeps what judges a policy apart from what builds it. Where ECO's published code differs, it is said
beside the number or the rule.
"""

import ast
import contextlib
import json
from collections.abc import Sequence
from dataclasses import replace

from sources.examples import Example, comparison_key, example_of
from sources.presets.data import Preset, Source, TaskData, TaskError, TaskReader, hub_parquet, keys_of
from sources.presets.names import WMDP_SUBJECTS
from sources.read import Row

_QUESTION_ANSWER = ("question", "answer")
_OPTIONS = tuple(f"option{number}" for number in range(1, 5))
_TRUTH_RATIO = ("paraphrased_question", "paraphrased_answer", "perturbed_answer")

#: The four that the WMDP paper measures, and chemistry.
_WMDP_NEIGHBOURS = (
    *("college_biology", "virology", "college_chemistry", "high_school_chemistry"),
    *("college_computer_science", "computer_security"),
)
_CHOICES = ("question", "choices", "answer")
_MMLU_SPLITS = ("dev", "validation", "test")
_MMLU = tuple(
    hub_parquet("cais/mmlu", "all", split, ("subject", *_CHOICES), name=f"mmlu {split}")
    for split in (*_MMLU_SPLITS, "auxiliary_train")
)
_WMDP = tuple(
    hub_parquet("cais/wmdp", f"wmdp-{subject}", "test", _CHOICES, name=f"wmdp-{subject}") for subject in WMDP_SUBJECTS
)
_SYNTHETIC = tuple(
    Source(name, ("question", "choices"), ("answer",), own_files=(name, f"synthetic_wmdp_questions/{name}"))
    for name in (f"synthetic_questions_{subject}" for subject in WMDP_SUBJECTS)
)
#: Rows of auxiliary_train for each forget example in `retain`, and as many again in `retain_test`. ECO draws 8: for
#: WMDP it halves them between training and test, for the subsets of MMLU all 8 are for training.
_WMDP_RATIO, _MMLU_RATIO = 4, 8
_HELD_OUT_SHARE = 0.1

#: Examples of one split of MMLU, by subject.
Subjects = dict[str, list[Example]]


def tofu_preset(forget: str) -> Preset:
    """Forget one of TOFU_SPLITS, the last percents of the fictitious authors (Maini et al. 2024, arXiv 2401.06121)."""
    percent = int(forget.removeprefix("forget"))
    retain = f"retain{100 - percent}"

    def assemble(reader: TaskReader) -> TaskData:
        forgotten, retained = reader.examples(forget), reader.examples(retain)
        known = keys_of(forgotten, retained)
        forgotten, forget_test = _with_truth_ratios(reader, f"{forget}_perturbed", forgotten, known)
        retained, retain_test = _with_truth_ratios(reader, "retain_perturbed", retained, known)
        holdout = [example for example in reader.examples("holdout10") if comparison_key(example.prompt) not in known]
        general = reader.examples("real_authors") + reader.examples("world_facts")
        return TaskData(forgotten, retained, forget_test, retain_test, holdout, general)

    return Preset(
        f"TOFU: forget {percent} % of its fictitious authors (arXiv 2401.06121; ECO section 4, entity unlearning)",
        (
            *(_tofu_source(name) for name in (forget, retain)),
            *(_tofu_source(name, *_OPTIONS) for name in ("real_authors", "world_facts")),
            *(_tofu_source(name, *_TRUTH_RATIO, optional=True) for name in (f"{forget}_perturbed", "retain_perturbed")),
            _tofu_source("holdout10", optional=True),
        ),
        {
            "forget": f"every row of {forget}, with the answers for truth ratios where {forget}_perturbed is at hand",
            "retain": f"every row of {retain}, likewise with retain_perturbed",
            "forget_test": f"paraphrased_question of {forget}_perturbed, where the file has that column",
            "retain_test": "paraphrased_question of retain_perturbed, where the file has that column",
            "neighbours": "holdout10: authors in no training split, where it is at hand",
            "general_test": "real_authors and world_facts, multiple choice",
        },
        "real_authors, world_facts and holdout10 only test; a paraphrase that is a training question is left out",
        assemble,
    )


def _tofu_source(name: str, *optional_columns: str, optional: bool = False) -> Source:
    copies = (name, f"TOFU/{name}")
    return Source(
        name, _QUESTION_ANSWER, optional_columns, copies=copies, hub="locuslab/TOFU", config=name, optional=optional
    )


def _with_truth_ratios(
    reader: TaskReader, name: str, examples: Sequence[Example], known: set[str]
) -> tuple[list[Example], list[Example]]:
    """The examples, with paraphrased and perturbed answers where the source has them; and its paraphrased questions.

    A paraphrase that is a training question word for word tests nothing and is left out.
    """

    def question(row: Row, where: str) -> list[Example]:
        text = row.get("paraphrased_question")
        return [] if text is None else [example_of({**row, "question": text}, where)]

    perturbed = {(example.prompt, example.answer): example for example in reader.examples(name)}
    paraphrased = reader.examples(name, question)
    return (
        [perturbed.get((example.prompt, example.answer), example) for example in examples],
        [example for example in paraphrased if comparison_key(example.prompt) not in known],
    )


def wmdp_preset() -> Preset:
    """Forget hazardous knowledge, judged by the WMDP benchmark (Li et al. 2024, arXiv 2403.03218)."""

    def assemble(reader: TaskReader) -> TaskData:
        forget = [
            example
            for subject in WMDP_SUBJECTS
            for example in reader.examples(f"synthetic_questions_{subject}", _synthetic_question)
        ]
        benchmark = [example for subject in WMDP_SUBJECTS for example in reader.examples(f"wmdp-{subject}")]
        return _against_mmlu(reader, _mmlu_splits(reader), forget, benchmark, _WMDP_NEIGHBOURS, _WMDP_RATIO)

    return Preset(
        "WMDP: forget hazardous knowledge (arXiv 2403.03218; ECO section 4, hazardous knowledge unlearning)",
        (*_SYNTHETIC, *_WMDP, *_MMLU),
        {
            "forget": "every synthetic question",
            "forget_test": "every question of WMDP (bio, chem, cyber)",
            **_mmlu_sets(_WMDP_RATIO, _WMDP_NEIGHBOURS, "all subjects"),
        },
        "no question of WMDP and no test question of MMLU is trained on",
        assemble,
    )


def synthetic_wmdp_preset() -> Preset:
    """As `wmdp_preset`, but judged by synthetic questions left out of training: needs no benchmark."""

    def assemble(reader: TaskReader) -> TaskData:
        benchmark = keys_of(*(reader.examples(f"wmdp-{subject}") for subject in WMDP_SUBJECTS))
        forget: list[Example] = []
        held_out: list[Example] = []
        for subject in WMDP_SUBJECTS:
            written = reader.examples(f"synthetic_questions_{subject}", _synthetic_question)
            questions = [example for example in written if comparison_key(example.prompt) not in benchmark]
            if len(questions) < len(written):
                dropped = f"{len(written) - len(questions)} of {len(written)} dropped"
                reader.notes.append(f"synthetic_questions_{subject}: {dropped}, they are questions of WMDP")
            order = reader.random(f"hold out {subject}").permutation(len(questions)).tolist()
            cut = round(_HELD_OUT_SHARE * len(questions)) or 1
            held_out += [questions[index] for index in sorted(order[:cut])]
            forget += [questions[index] for index in sorted(order[cut:])]
        return _against_mmlu(reader, _mmlu_splits(reader), forget, held_out, _WMDP_NEIGHBOURS, _WMDP_RATIO)

    return Preset(
        "WMDP's subjects, trained and judged on synthetic questions alone (ECO section 4 and appendix)",
        (*_SYNTHETIC, *(replace(source, optional=True) for source in _WMDP), *_MMLU),
        {
            "forget": f"{1 - _HELD_OUT_SHARE:.0%} of the synthetic questions of each subject, drawn with the seed",
            "forget_test": "the other synthetic questions",
            **_mmlu_sets(_WMDP_RATIO, _WMDP_NEIGHBOURS, "all subjects"),
        },
        "synthetic questions that are in WMDP, where its files are at hand, are dropped; no test question of MMLU "
        "is trained on",
        assemble,
    )


def _synthetic_question(row: Row, where: str) -> list[Example]:
    """A row whose choices may be a list written as text: as JSON, or in Python's form as in ECO's files."""
    record = dict(row)
    if isinstance(choices := row["choices"], str):
        for parse in (json.loads, ast.literal_eval):
            with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
                record["choices"] = parse(choices)
                break
    if row.get("answer") not in (None, ""):
        return [example_of(record, where)]
    # Without the right answer the question still trains a classifier; the first choice stands in for the checks.
    checked = example_of(record | {"answer": 0}, where)
    return [replace(checked, answer=None, answer_index=None)]


def mmlu_preset(topic: str, forget_subjects: tuple[str, ...], neighbours: tuple[str, ...]) -> Preset:
    """Forget some subjects of MMLU and keep their neighbours (Hendrycks et al. 2021, arXiv 2009.03300)."""

    def assemble(reader: TaskReader) -> TaskData:
        splits = _mmlu_splits(reader)
        forget = [example for split in ("dev", "validation") for example in _pop(splits[split], forget_subjects)]
        forget_test = _pop(splits["test"], forget_subjects)
        return _against_mmlu(reader, splits, forget, forget_test, neighbours, _MMLU_RATIO)

    subjects = ", ".join(forget_subjects)
    return Preset(
        f"MMLU: forget {topic} (arXiv 2009.03300; ECO section 4, hazardous knowledge unlearning)",
        _MMLU,
        {
            # ECO trains on dev alone: 5 questions a subject, too few to calibrate on as well.
            "forget": f"dev and validation questions of {subjects}",
            "forget_test": "test questions of the same subjects",
            **_mmlu_sets(_MMLU_RATIO, neighbours, "all other subjects"),
        },
        "no test question of MMLU is trained on",
        assemble,
    )


def _mmlu_sets(ratio: int, neighbours: Sequence[str], kept: str) -> dict[str, str]:
    return {
        "retain": f"dev and validation questions of {kept}, and {ratio} questions of auxiliary_train for each of "
        "forget, drawn with the seed",
        "retain_test": "as many other questions of auxiliary_train",
        "neighbours": f"test questions of {', '.join(neighbours)}",
        "general_test": "test questions of the remaining subjects",
    }


def _mmlu_splits(reader: TaskReader) -> dict[str, Subjects]:
    return {split: reader.groups(f"mmlu {split}", by="subject") for split in _MMLU_SPLITS}


def _against_mmlu(
    reader: TaskReader,
    splits: dict[str, Subjects],
    forget: list[Example],
    forget_test: list[Example],
    neighbours: tuple[str, ...],
    ratio: int,
) -> TaskData:
    """A task whose prompts that must pass are of MMLU, in which nothing to be forgotten is left."""
    near = _pop(splits["test"], neighbours)
    rest, dev, validation = (
        [example for examples in splits[split].values() for example in examples]
        for split in ("test", "dev", "validation")
    )
    avoid = keys_of(forget, forget_test, near, rest, dev, validation)
    auxiliary = reader.sample("mmlu auxiliary_train", 2 * ratio * len(forget), avoid)
    return TaskData(forget, dev + validation + auxiliary[::2], forget_test, auxiliary[1::2], near, rest)


def _pop(subjects: Subjects, names: Sequence[str]) -> list[Example]:
    """Take these subjects out of a split.

    Raises:
        TaskError: one of them is not in it.
    """
    if absent := [name for name in names if name not in subjects]:
        raise TaskError(f"mmlu: no rows with subject {' or '.join(absent)}; give the whole config 'all' of cais/mmlu")
    return [example for name in names for example in subjects.pop(name)]
