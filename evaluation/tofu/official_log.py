"""Reads the official TOFU log: `eval_log_aggregated.json` as `evaluate_util.py` of locuslab/tofu writes it.

One object for each of four tasks; in it one for each metric, {index of the question: value}. Early versions wrote plain
lists; both are read. The official aggregation pairs metrics by their order in the file, this module by index.

A loss is per token, in nats, over the answer and the end-of-sequence token. Read are `avg_gt_loss`,
`avg_paraphrased_loss`, `average_perturb_loss` (a list for each question) and `rougeL_recall`, as the aggregation
(`aggregate_eval_stat.py`) does; and, to see that two logs belong together, `generated_text` and the token counts.
"""

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from evaluation.errors import DataError
from evaluation.tofu.metrics import Subset

__all__ = ["LOG_NAME", "TASKS", "LoggedTask", "TofuLog", "read_log"]

LOG_NAME: Final = "eval_log_aggregated.json"

TASKS: Final[Mapping[Subset, str]] = {
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
        texts: prompt, generated answer and right answer; empty where the log has none.
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
        tasks: by subset, in the order of `TASKS`.
    """

    where: str
    tasks: Mapping[Subset, LoggedTask]


def read_log(path: str | Path, *, flag: str = "--from-logs", needed: Collection[str] = tuple(TASKS)) -> TofuLog:
    """Read and check a log, or the log in a folder.

    Args:
        flag: what error messages begin with.
        needed: subsets it must hold; others are read where it has them. Of a retain model ("forget",) is enough.

    Raises:
        DataError: it cannot be read, or a task, a metric or a question's value is missing or no number.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        file = file / LOG_NAME
    where = f"{flag}: {file}"
    tasks = _parsed(file, where)
    absent = [name for subset, name in TASKS.items() if subset in needed and name not in tasks]
    if absent:
        raise DataError(f"{where}: no {', '.join(absent)}; give an {LOG_NAME} with all tasks")
    found = {subset: _task(tasks[name], f"{where}: {name}") for subset, name in TASKS.items() if name in tasks}
    return TofuLog(where, found)


def _parsed(file: Path, where: str) -> Mapping[str, object]:
    try:
        parsed: object = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{where}: no such file; give an {LOG_NAME} or its folder") from error
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror}); check the file and its rights") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{where}: malformed JSON; give an {LOG_NAME} as TOFU's evaluate_util.py writes it") from error
    if not isinstance(parsed, dict):
        raise DataError(f"{where}: a {type(parsed).__name__}; expected an object with {', '.join(TASKS.values())}")
    return parsed


def _task(raw: object, where: str) -> LoggedTask:
    if not isinstance(raw, dict):
        raise DataError(f"{where}: a {type(raw).__name__}; expected an object with {', '.join(_NUMBERS)}")
    absent = [name for name in (*_NUMBERS, _PERTURBED) if name not in raw]
    if absent:
        raise DataError(f"{where}: no {', '.join(absent)}; evaluate the model again with TOFU's evaluate_util.py")
    numbers = {name: _numbers(_by_index(raw[name], f"{where}: {name}"), f"{where}: {name}") for name in _NUMBERS}
    listed = _by_index(raw[_PERTURBED], f"{where}: {_PERTURBED}")
    perturbed = {index: _number_list(one, f"{where}: {_PERTURBED}: question {index}") for index, one in listed.items()}
    indices = numbers["avg_gt_loss"].keys()
    for name, keys in [*((n, m.keys()) for n, m in numbers.items()), (_PERTURBED, perturbed.keys())]:
        if keys != indices:
            raise DataError(
                f"{where}: {name} has {len(keys)} questions and avg_gt_loss {len(indices)}, or other indices; "
                "merge the logs of all processes, or evaluate again"
            )
    return LoggedTask(
        answer=numbers["avg_gt_loss"],
        paraphrased=numbers["avg_paraphrased_loss"],
        perturbed=perturbed,
        rouge_l=numbers["rougeL_recall"],
        texts=_texts(raw, indices),
        tokens=_tokens(raw, indices),
    )


def _by_index(raw: object, where: str) -> dict[str, object]:
    """Values by index, of either layout."""
    if isinstance(raw, list):
        raw = {str(number): value for number, value in enumerate(raw)}
    if not isinstance(raw, dict) or not raw:
        raise DataError(f"{where}: no values; expected an object from a question's index to its value")
    return raw


def _numbers(values: Mapping[str, object], where: str) -> dict[str, float]:
    return {index: _number(value, f"{where}: question {index}") for index, value in values.items()}


def _number(value: object, where: str) -> float:
    if not _is_number(value):
        raise DataError(f"{where}: {value!r:.40}; expected a finite number")
    assert isinstance(value, int | float)
    return float(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number_list(value: object, where: str) -> tuple[float, ...]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: {value!r:.40}; expected a list with the loss of each wrong answer")
    return tuple(_number(one, where) for one in value)


def _texts(raw: Mapping[str, object], indices: Collection[str]) -> dict[str, Texts]:
    """Empty where the log has none, or not of every question."""
    found = raw.get("generated_text")
    if isinstance(found, list):
        found = {str(number): value for number, value in enumerate(found)}
    if not isinstance(found, dict) or not set(indices) <= found.keys():
        return {}
    texts = {index: found[index] for index in indices}
    if any(not _three_texts(one) for one in texts.values()):
        return {}
    return {index: (one[0], one[1], one[2]) for index, one in texts.items()}


def _three_texts(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(isinstance(one, str) for one in value)


def _tokens(raw: Mapping[str, object], indices: Collection[str]) -> dict[str, dict[str, Counts]]:
    """Token counts, as they stand or, of a log without them, as summed loss over loss per token."""
    found: dict[str, dict[str, Counts]] = {}
    for name, total, per_token in _COUNTED:
        counts = _counts(raw.get(name)) or _quotients(_lists(raw.get(total)), _lists(raw.get(per_token)))
        if set(indices) <= counts.keys():
            found[name] = {index: counts[index] for index in indices}
    return found


def _lists(raw: object) -> dict[str, list[float]]:
    """Whatever of it is numbers, by index."""
    values = dict(enumerate(raw)) if isinstance(raw, list) else raw if isinstance(raw, dict) else {}
    lists = {str(index): one if isinstance(one, list) else [one] for index, one in values.items()}
    return {index: many for index, many in lists.items() if all(_is_number(one) for one in many)}


def _counts(raw: object) -> dict[str, Counts]:
    return {index: tuple(round(one) for one in many) for index, many in _lists(raw).items()}


def _quotients(totals: Mapping[str, list[float]], means: Mapping[str, list[float]]) -> dict[str, Counts]:
    """Totals over means, where these are whole numbers but for rounding; losses in bfloat16 are too coarse for that."""
    found: dict[str, Counts] = {}
    for index in totals.keys() & means.keys():
        if all(means[index]):
            ratios = [total / mean for total, mean in zip(totals[index], means[index], strict=False)]
            if all(abs(ratio - round(ratio)) < _NEARLY_WHOLE for ratio in ratios):
                found[index] = tuple(map(round, ratios))
    return found
