"""Prompts by domain: the benchmarks that everybody knows, each asked as it is asked, and one's own files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from evaluation.errors import DataError
from evaluation.rows import read_rows
from sources import HUB_PREFIX, Row

#: Of the chat prompts of aya, which has sixty-five.
LANGUAGES: Final = (
    "Arabic",
    "English",
    "French",
    "German",
    "Hindi",
    "Japanese",
    "Portuguese",
    "Simplified Chinese",
    "Spanish",
    "Turkish",
)


@dataclass(frozen=True, slots=True)
class DomainPrompt:
    """A prompt that must pass.

    Attributes:
        id: within the suite.
        domain: what it is from, such as "mmlu".
        part: a part of that, such as a subject or a language; "" for none.
    """

    id: str
    domain: str
    part: str
    text: str


@dataclass(frozen=True, slots=True)
class _Domain:
    """A data set of the hub: what makes a prompt of a row (None where it is not asked), and the column of its part."""

    source: str
    columns: tuple[str, ...]
    prompt: Callable[[Row], str | None]
    part: str | None = None


def _options(row: Row) -> str:
    choices = row["choices"]
    if not isinstance(choices, list):
        raise TypeError("list of choices")
    return "\n".join(
        [str(row["question"]), *(f"{letter}. {text}" for letter, text in zip("ABCD", choices, strict=False))]
    )


def _of_language(row: Row) -> str | None:
    return str(row["inputs"]) if row["language"] in LANGUAGES else None


DOMAINS: Final[Mapping[str, _Domain]] = {
    "mmlu": _Domain("cais/mmlu:all:test", ("question", "choices", "subject"), _options, "subject"),
    "hellaswag": _Domain("Rowan/hellaswag::validation", ("ctx",), lambda row: str(row["ctx"])),
    "truthfulqa": _Domain(
        "truthfulqa/truthful_qa:generation:validation",
        ("question", "category"),
        lambda row: str(row["question"]),
        "category",
    ),
    "simpleqa": _Domain("basicv8vc/SimpleQA::test", ("problem",), lambda row: str(row["problem"])),
    "alpaca": _Domain(
        "tatsu-lab/alpaca::train",
        ("instruction", "input"),
        lambda row: "\n\n".join(filter(None, (str(row["instruction"]), str(row["input"] or "")))),
    ),
    "gsm8k": _Domain("openai/gsm8k:main:test", ("question",), lambda row: str(row["question"])),
    "code": _Domain("openai/openai_humaneval::test", ("prompt",), lambda row: str(row["prompt"])),
    "languages": _Domain("CohereLabs/aya_dataset::train", ("inputs", "language"), _of_language, "language"),
}


def published_prompts(name: str) -> list[DomainPrompt]:
    """The prompts of one of `DOMAINS`, from the hub.

    Raises:
        DataError: there is no such domain, or it cannot be had.
    """
    if name not in DOMAINS:
        raise DataError(f"--domain: {name!r} is none of {', '.join(DOMAINS)}; give a file of your own with --data")
    domain = DOMAINS[name]
    rows = read_rows(f"{HUB_PREFIX}{domain.source}", name="domain", columns=domain.columns)
    prompts = []
    for number, (where, row) in enumerate(rows, 1):
        try:
            text, part = domain.prompt(row), "" if domain.part is None else str(row[domain.part])
        except (KeyError, TypeError) as error:
            raise DataError(f"{where}: has no {error}; the data set has changed, download it and use --data") from error
        if text is not None:
            prompts.append(DomainPrompt(f"{name}-{number}", name, part, text))
    return prompts


def own_prompts(sources: Sequence[str]) -> list[DomainPrompt]:
    """The prompts of files with columns `prompt` and `domain`, and `part` where there is one.

    Raises:
        DataError: a file cannot be read, or a row lacks a column.
    """
    prompts = []
    for place, source in enumerate(sources):
        rows = read_rows(source, name="data", columns=("prompt", "domain", "part"))
        for number, (where, row) in enumerate(rows, 1):
            values = {column: row.get(column) for column in ("prompt", "domain")}
            for column, value in values.items():
                if not isinstance(value, str) or not value.strip():
                    raise DataError(f"{where}: {column}: is missing; each row has a prompt and the domain it is of")
            name = f"{place}-{number}" if len(sources) > 1 else str(number)
            part = str(row.get("part") or "")
            prompts.append(DomainPrompt(name, str(values["domain"]), part, str(values["prompt"])))
    return prompts
