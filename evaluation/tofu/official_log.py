"""The official TOFU log, `eval_log_aggregated.json` as `evaluate_util.py` of locuslab/tofu writes it: read, checked
against a retain model's, and made figures and a run's folder of.

One object for each of four tasks; in it one for each metric, {index of the question: value}. Early versions wrote plain
lists; both are read. The official aggregation pairs metrics by their order in the file, this module by index.

A loss is per token, in nats, over the answer and the end-of-sequence token. Read are `avg_gt_loss`,
`avg_paraphrased_loss`, `average_perturb_loss` (a list for each question) and `rougeL_recall`, as the aggregation
(`aggregate_eval_stat.py`) does; and, to see that two logs belong together, `generated_text` and the token counts.

The logs' values become the scores a suite would have measured, and the same code makes the figures. They equal the
official aggregation column by column: `Prob. X` is the mean of X/probability, `ROUGE X` of X/rouge_l, `Truth Ratio X`
of X/truth_score; `Model Utility` is model_utility and `Forget Quality` forget_quality.
"""

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeGuard

from evaluation.errors import DataError, RunError
from evaluation.intervals import mean_figures
from evaluation.runs.record import RUN, RunRecord
from evaluation.runs.run import RunOptions, check_folder, clear_folder, locked, now
from evaluation.suite import Answer, Figure, Score, scores_of
from evaluation.tofu import metrics
from evaluation.tofu.metrics import FORGET, Mean, Subset

_LOG_NAME: Final = "eval_log_aggregated.json"

_TASKS: Final[Mapping[Subset, str]] = {
    "forget": "eval_log_forget.json",
    "retain": "eval_log.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
}
"""Subset -> the log's name for it."""

_NUMBERS: Final = ("avg_gt_loss", "avg_paraphrased_loss", "rougeL_recall")
_PERTURBED: Final = "average_perturb_loss"
#: (tokens of the answers, their summed loss, their loss per token)
_COUNTED: Final = (
    ("num_token_gt", "gt_loss", "avg_gt_loss"),
    ("num_token_paraphrased", "paraphrased_loss", "avg_paraphrased_loss"),
    ("num_token_perturb", "perturb_loss", _PERTURBED),
)

#: How far a quotient of losses may be from a whole number; losses in bfloat16 are too coarse for that.
_NEARLY_WHOLE: Final = 0.01

Counts = tuple[int, ...]
Texts = tuple[str, str, str]


@dataclass(frozen=True)
class LoggedTask:
    """One task of a log. Every mapping has the same indices as keys, in the order of the file, unless it is empty.

    Attributes:
        answer, paraphrased: loss per token, in nats.
        perturbed: of each wrong answer.
        rouge_l: ROUGE-L recall of the generated answer, in [0, 1].
        texts: prompt, generated answer and right answer; empty where the log has none, or not of every question.
        tokens: of the answer, the paraphrase and the wrong answers, as far as the log tells; empty where it does not.
    """

    answer: Mapping[str, float]
    paraphrased: Mapping[str, float]
    perturbed: Mapping[str, tuple[float, ...]]
    rouge_l: Mapping[str, float]
    texts: Mapping[str, Texts]
    tokens: Mapping[str, Mapping[str, Counts]]


@dataclass(frozen=True)
class TofuLog:
    """One model's log.

    Attributes:
        where: flag and file, as error messages open.
        tasks: by subset, in the order of `_TASKS`.
    """

    where: str
    tasks: Mapping[Subset, LoggedTask]


def read_log(path: str | Path, *, flag: str = "--from-logs", needed: Collection[str] = tuple(_TASKS)) -> TofuLog:
    """Read and check a log, or the log in a folder.

    Args:
        flag: what error messages begin with.
        needed: subsets it must hold; others are read where it has them. Of a retain model ("forget",) is enough.

    Raises:
        DataError: it cannot be read, or a task, a metric or a question's value is missing or no number.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        file = file / _LOG_NAME
    where = f"{flag}: {file}"
    try:
        tasks: object = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{where}: no such file; give an {_LOG_NAME} or its folder") from error
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror}); check the file and its rights") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{where}: malformed JSON; give an {_LOG_NAME} as TOFU's evaluate_util.py writes it") from error
    if not isinstance(tasks, dict):
        raise DataError(f"{where}: a {type(tasks).__name__}; expected an object with {', '.join(_TASKS.values())}")
    if absent := [name for subset, name in _TASKS.items() if subset in needed and name not in tasks]:
        raise DataError(f"{where}: no {', '.join(absent)}; give an {_LOG_NAME} with all tasks")
    read = {subset: _task(tasks[name], f"{where}: {name}") for subset, name in _TASKS.items() if name in tasks}
    return TofuLog(where, read)


def _task(raw: object, where: str) -> LoggedTask:
    if not isinstance(raw, dict):
        raise DataError(f"{where}: a {type(raw).__name__}; expected an object with {', '.join(_NUMBERS)}")
    if absent := [name for name in (*_NUMBERS, _PERTURBED) if name not in raw]:
        raise DataError(f"{where}: no {', '.join(absent)}; evaluate the model again with TOFU's evaluate_util.py")
    values = {name: _by_index(raw[name]) for name in (*_NUMBERS, _PERTURBED)}
    for name, by_index in values.items():
        if not by_index:
            raise DataError(f"{where}: {name}: no values; expected an object from a question's index to its value")
    numbers = {
        name: {index: _number(value, f"{where}: {name}: question {index}") for index, value in values[name].items()}
        for name in _NUMBERS
    }
    perturbed = {}
    for index, losses in values[_PERTURBED].items():
        place = f"{where}: {_PERTURBED}: question {index}"
        if not isinstance(losses, list) or not losses:
            raise DataError(f"{place}: {losses!r:.40}; expected a list with the loss of each wrong answer")
        perturbed[index] = tuple(_number(loss, place) for loss in losses)
    indices = numbers["avg_gt_loss"].keys()
    for name, by_index in values.items():
        if by_index.keys() != indices:
            raise DataError(
                f"{where}: {name} has {len(by_index)} questions and avg_gt_loss {len(indices)}, or other indices; "
                "merge the logs of all processes, or evaluate again"
            )
    logged = _by_index(raw.get("generated_text"))
    texts: dict[str, Texts] = {}
    for index in indices:
        match logged.get(index):
            case [str(prompt), str(generated), str(right)]:
                texts[index] = (prompt, generated, right)
    if len(texts) < len(indices):
        texts = {}
    # As they stand or, of a log without them, as summed loss over loss per token.
    tokens: dict[str, dict[str, Counts]] = {}
    for name, total, per_token in _COUNTED:
        counts = _lists(raw.get(name))
        if not counts:
            totals, means = _lists(raw.get(total)), _lists(raw.get(per_token))
            for index in totals.keys() & means.keys():
                if all(means[index]):
                    ratios = [whole / mean for whole, mean in zip(totals[index], means[index], strict=False)]
                    if all(abs(ratio - round(ratio)) < _NEARLY_WHOLE for ratio in ratios):
                        counts[index] = ratios
        if set(indices) <= counts.keys():
            tokens[name] = {index: tuple(map(round, counts[index])) for index in indices}
    losses = (numbers["avg_gt_loss"], numbers["avg_paraphrased_loss"], perturbed)
    return LoggedTask(*losses, numbers["rougeL_recall"], texts, tokens)


def _by_index(raw: object) -> dict[str, object]:
    """Values by index, of either layout; empty where there are none."""
    if isinstance(raw, list):
        return {str(number): value for number, value in enumerate(raw)}
    return raw if isinstance(raw, dict) else {}


def _number(value: object, where: str) -> float:
    if not _is_number(value):
        raise DataError(f"{where}: {value!r:.40}; expected a finite number")
    return float(value)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _lists(raw: object) -> dict[str, list[float]]:
    """Whatever of it is numbers, by index."""
    lists: dict[str, list[Any]] = {
        index: one if isinstance(one, list) else [one] for index, one in _by_index(raw).items()
    }
    return {index: many for index, many in lists.items() if all(map(_is_number, many))}


def scores_of_log(log: TofuLog, *, mean: Mean = "geometric") -> list[Score]:
    """The metrics of `evaluation.tofu.suite.TofuSuite` for each question; the example ids are the log's indices."""
    scores: list[Score] = []
    for subset, task in log.tasks.items():
        for index, loss in task.answer.items():
            perturbed = [-wrong for wrong in task.perturbed[index]]
            values = metrics.example_metrics(subset, -loss, -task.paraphrased[index], perturbed, mean)
            scores += scores_of(subset, index, {"rouge_l": task.rouge_l[index], **values})
    return scores


def answers_of_log(log: TofuLog) -> list[Answer]:
    """The generated answers, where the log has them; the question stands in its prompt template."""
    return [
        Answer(subset, index, prompt, generated, right)
        for subset, task in log.tasks.items()
        for index, (prompt, generated, right) in task.texts.items()
    ]


def figures_of_logs(log: TofuLog, retain: TofuLog | None, *, mean: Mean = "geometric") -> list[Figure]:
    """All figures of the official aggregation, with intervals: the means (see `tofu_figures`), model utility, forget
    quality.

    Args:
        retain: of a model that never learned the forget set; None: no forget quality.

    Raises:
        DataError: the two logs do not belong together (see `check_logs`).
    """
    caveats = () if retain is None else check_logs(log, retain)
    scores = scores_of_log(log, mean=mean)
    reference = None if retain is None else scores_of_log(retain, mean=mean)
    figures = mean_figures(scores)
    for figure in metrics.tofu_figures(scores, reference):
        note = "; ".join((figure.note, *caveats)) if figure.name in metrics.QUALITY_NAMES else figure.note
        figures.append(replace(figure, note=note))
    return figures


def check_logs(log: TofuLog, retain: TofuLog) -> tuple[str, ...]:
    """Whether the forget tasks of two logs can be compared: the same questions, answers and tokenizer.

    Texts are compared where both logs have `generated_text`, tokenizers where both tell how many tokens an answer has.

    Returns:
        What could not be compared, one line each.

    Raises:
        DataError: they cannot; one line that says why.
    """
    both = f"{retain.where} and {log.where}"
    for one in (log, retain):
        if FORGET not in one.tasks:
            raise DataError(f"{one.where}: no {_TASKS[FORGET]}; give a log with the forget set")
    mine, other = log.tasks[FORGET], retain.tasks[FORGET]
    if len(mine.answer) != len(other.answer):
        counts = f"{len(other.answer)} and {len(mine.answer)} forget questions"
        raise DataError(f"{both}: {counts}; evaluate both models with the same split and ds_size")
    if mine.answer.keys() != other.answer.keys():
        raise DataError(f"{both}: indices of different forget questions; evaluate both models with the same split")
    if differing := _first_difference(mine, other, 2):
        index, theirs, ours = differing
        raise DataError(
            f"{both}: different forget questions: the answer to question {index} is {theirs!r} and {ours!r}; "
            "evaluate both models with the same split"
        )
    for index, wrong in mine.perturbed.items():
        if len(other.perturbed[index]) != len(wrong):
            counts = f"{len(other.perturbed[index])} and {len(wrong)} wrong answers to question {index}"
            raise DataError(f"{both}: {counts}; evaluate both models with the same data")
    compared = mine.tokens.keys() & other.tokens.keys()
    for name in (name for name in mine.tokens if name in compared):
        for index, count in mine.tokens[name].items():
            if other.tokens[name][index] != count:
                theirs, ours = (", ".join(map(str, counts)) for counts in (other.tokens[name][index], count))
                raise DataError(
                    f"{both}: different tokenizers: {name} of question {index} is {theirs} and {ours}; "
                    "compare with a retain model of the same family"
                )
    if differing := _first_difference(mine, other, 0):
        index, theirs, ours = differing
        raise DataError(  # a prompt is the question in the model family's template
            f"{both}: different prompts for question {index}: {theirs!r} and {ours!r}; "
            "evaluate both models with the same split and prompt template"
        )
    caveats = {
        "questions not compared: a log has no generated_text": not (mine.texts and other.texts),
        "tokenizers not compared: a log has no num_token_gt": not compared,
    }
    return tuple(caveat for caveat, holds in caveats.items() if holds)


def _first_difference(mine: LoggedTask, other: LoggedTask, place: int) -> tuple[str, str, str] | None:
    """Index, other text and mine of the first question whose texts at this place of `Texts` differ.

    Decoding may change spaces, and those around punctuation: neither counts.
    """
    for index in mine.texts if other.texts else ():
        theirs, ours = other.texts[index][place], mine.texts[index][place]
        if list(filter(str.isalnum, theirs)) != list(filter(str.isalnum, ours)):
            return index, theirs[:60], ours[:60]
    return None


def run_tofu_logs(log: Path, retain_log: Path | None, options: RunOptions | None, *, mean: Mean) -> RunRecord:
    """TOFU's figures from its official logs; written where `options` say, or nowhere without them.

    The folder is for a report of such runs, not beside a suite's own: logs know their questions by number only.

    Raises:
        DataError: a log cannot be read, or the two do not belong together.
        RunError: the folder holds something else.
    """
    started = now()
    if options is not None:
        check_folder(options.out)
        if (options.out / RUN).exists() and not options.force:
            raise RunError(f"--out: {options.out} holds a run; choose another folder, or --force to replace it")
    mine = read_log(log)
    retain = None if retain_log is None else read_log(retain_log, flag="--retain-logs", needed=("forget",))
    if retain is not None and retain.tasks[FORGET] == mine.tasks[FORGET]:
        raise DataError(
            f"{retain.where} and {mine.where}: are of one model, with the same losses for every forget question; give "
            "the log of a model that never learned them as --retain-logs"
        )
    record = RunRecord(
        suite="tofu",
        label=options.label if options is not None else log.stem,
        kind=options.kind if options is not None else "other",
        target={"kind": "logs", "model": log.name},
        suite_settings={"suite": "tofu", "log": log.name, "truth_ratio_mean": mean},
        draws=1,
        started=started,
        finished=now(),
        reference=None if retain_log is None else {"label": retain_log.stem, "run": retain_log.name},
        figures=tuple(figures_of_logs(mine, retain, mean=mean)),
        headline=tuple(metrics.HEADLINE),
        directions=dict(metrics.DIRECTIONS),
    )
    if options is not None:
        with locked(options.out):
            clear_folder(options.out)
            record.write(options.out, scores_of_log(mine, mean=mean), answers_of_log(mine))
    return record
