"""TOFU's figures from two official logs (see `tofu_log_file`), the model's and a retain model's.

The logs' values become the scores a suite would have measured, and the same code makes the figures. They equal the
official aggregation, `aggregate_eval_stat.py`, column by column: `Prob. X` is the mean of X/probability, `ROUGE X` of
X/rouge_l, `Truth Ratio X` of X/truth_score; `Model Utility` is model_utility and `Forget Quality` forget_quality.
"""

from dataclasses import replace

from evaluation.errors import DataError
from evaluation.intervals import mean_figures
from evaluation.suite import Answer, Figure, Score
from evaluation.tofu.figures import forget_quality_figures, model_utility_figure, retain_utility_figure
from evaluation.tofu.metrics import FORGET, Mean, Subset, example_metrics
from evaluation.tofu.official_log import TASKS, LoggedTask, TofuLog, read_log

__all__ = ["TofuLog", "answers_of_log", "check_logs", "figures_of_logs", "read_log", "scores_of_log"]


def scores_of_log(log: TofuLog, *, mean: Mean = "geometric") -> list[Score]:
    """The metrics of `suites.tofu.TofuSuite` for each question; the example ids are the log's indices."""
    return [
        Score(subset, metric, index, value)
        for subset, task in log.tasks.items()
        for index in task.answer
        for metric, value in _values(subset, task, index, mean).items()
    ]


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
    quality = forget_quality_figures(scores, reference)
    noted = [replace(figure, note="; ".join((figure.note, *caveats))) for figure in quality]
    return [*mean_figures(scores), model_utility_figure(scores), retain_utility_figure(scores), *noted]


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
            raise DataError(f"{one.where}: no {TASKS[FORGET]}; give a log with the forget set")
    mine, other = log.tasks[FORGET], retain.tasks[FORGET]
    if len(mine.answer) != len(other.answer):
        raise DataError(
            f"{both}: {len(other.answer)} and {len(mine.answer)} forget questions; "
            "evaluate both models with the same split and ds_size"
        )
    if mine.answer.keys() != other.answer.keys():
        raise DataError(f"{both}: indices of different forget questions; evaluate both models with the same split")
    _check_questions(mine, other, both)
    _check_tokens(mine, other, both)
    _check_prompts(mine, other, both)
    caveats = []
    if not (mine.texts and other.texts):
        caveats.append("questions not compared: a log has no generated_text")
    if not mine.tokens.keys() & other.tokens.keys():
        caveats.append("tokenizers not compared: a log has no num_token_gt")
    return tuple(caveats)


def _check_questions(mine: LoggedTask, other: LoggedTask, both: str) -> None:
    for index, (_, _, right) in mine.texts.items():
        if other.texts and _letters(other.texts[index][2]) != _letters(right):
            raise DataError(
                f"{both}: different forget questions: the answer to question {index} is {other.texts[index][2][:60]!r} "
                f"and {right[:60]!r}; evaluate both models with the same split"
            )
    for index, wrong in mine.perturbed.items():
        if len(other.perturbed[index]) != len(wrong):
            raise DataError(
                f"{both}: {len(other.perturbed[index])} and {len(wrong)} wrong answers to question {index}; "
                "evaluate both models with the same data"
            )


def _check_tokens(mine: LoggedTask, other: LoggedTask, both: str) -> None:
    for name, counts in mine.tokens.items():
        for index, count in counts.items():
            if name in other.tokens and other.tokens[name][index] != count:
                theirs, ours = (", ".join(map(str, c)) for c in (other.tokens[name][index], count))
                raise DataError(
                    f"{both}: different tokenizers: {name} of question {index} is {theirs} and {ours}; "
                    "compare with a retain model of the same family"
                )


def _check_prompts(mine: LoggedTask, other: LoggedTask, both: str) -> None:
    """A prompt is the question in the model family's template."""
    for index, (prompt, _, _) in mine.texts.items():
        if other.texts and _letters(other.texts[index][0]) != _letters(prompt):
            raise DataError(
                f"{both}: different prompts for question {index}: {other.texts[index][0][:60]!r} and {prompt[:60]!r}; "
                "evaluate both models with the same split and prompt template"
            )


def _letters(text: str) -> str:
    """Without what decoding may change: spaces, and those around punctuation."""
    return "".join(filter(str.isalnum, text))


def _values(subset: Subset, task: LoggedTask, index: str, mean: Mean) -> dict[str, float]:
    perturbed = [-loss for loss in task.perturbed[index]]
    values = example_metrics(subset, -task.answer[index], -task.paraphrased[index], perturbed, mean)
    return {"rouge_l": task.rouge_l[index], **values}
