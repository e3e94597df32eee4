"""Sets of tokenised examples from sources as written on the command line: the only thing of a job's data that a
trainer sees.

Read are TOFU's columns (`question`, `answer`), `prompt` with `answer` or `completion`, multiple choice as
`sources.examples` takes it, TruthfulQA's (`question`, `best_answer`, or its CSV's `Question`, `Best Answer`),
PKU-SafeRLHF's, and plain text in `text`, `article` or `content`. Here too is every refusal of data that cannot be
trained on. Nothing in here loads a model's weights.
"""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from offline_training.data.encoding import EncodedSet, ExampleEncoder, digest_of
from offline_training.errors import DataError
from sources import Row, Rows, SourceError, flag_of, read_source
from sources.examples import Example, ExampleFileError, check_disjoint, example_of

_QUESTIONS = ("question", "prompt", "Question")
_BEST_ANSWERS = ("best_answer", "Best Answer")
_TEXTS = ("text", "article", "content")
_RESPONSES = (("response_0", "is_response_0_safe"), ("response_1", "is_response_1_safe"))
_COLUMNS = frozenset(
    {"answer", "completion", "choices", "paraphrased_answer", "perturbed_answer"}.union(
        _QUESTIONS,
        _BEST_ANSWERS,
        _TEXTS,
        *_RESPONSES,
        (f"option{separator}{number}" for separator in ("", "_") for number in range(1, 10)),
    )
)
_SAFETY = {"true": True, "1": True, "false": False, "0": False}

#: Rows of a published data set that are no example (an empty article) are passed over, and counted, up to this share.
#: Rows of a file never are.
_TOLERATED_SHARE = 0.01


@dataclass(frozen=True)
class LoadedSource:
    """The examples of one source.

    Attributes:
        examples: each with an answer; or, of plain text, none with one, and the text as prompt.
        is_text: it is plain text.
        notes: what was passed over and how much, one line each.
    """

    examples: tuple[Example, ...]
    is_text: bool
    notes: tuple[str, ...] = ()


def load_set(source: str, name: str, encoder: ExampleEncoder) -> EncodedSet:
    """Read and encode what `--name SOURCE` gives: questions with answers, or plain text.

    Raises:
        DataError: as `load_examples` and the encoder's `encode_set` and `encode_text`.
    """
    loaded = load_examples(source, name=name)
    if loaded.is_text:
        encoded = encoder.encode_text(name, source, [example.prompt for example in loaded.examples])
    else:
        encoded = encoder.encode_set(name, source, loaded.examples)
    return replace(encoded, notes=loaded.notes + encoded.notes)


def load_examples(source: str, *, name: str) -> LoadedSource:
    """Read a source as written on the command line (see `sources`).

    Of PKU-SafeRLHF the set named `forget` takes the responses that are not safe, any other set the safe ones, as in
    LLMU's `utils.py` (Yao, Xu and Liu 2023, arXiv 2310.10683).

    Args:
        name: of the set: `forget`, `retain` …; error messages name the flag `--name`.

    Raises:
        DataError: the source cannot be read, a row is malformed, empty or has no answer, or questions and plain text
            are mixed. One line that names flag, file and line.
    """
    read, flag = _read(source, name, _COLUMNS), flag_of(name)
    examples: list[Example] = []
    refused: list[DataError] = []
    for where, row in read.rows:
        try:
            examples += _examples_of(row, where, unsafe=name == "forget")
        except ExampleFileError as error:
            refused.append(DataError(str(error)))
        except DataError as error:
            refused.append(error)
        if refused and (not read.published or len(refused) > _TOLERATED_SHARE * len(read.rows)):
            raise refused[0]
    if not examples:
        raise DataError(
            f"{flag}: {source}: none of {len(read.rows)} rows has a response of the wanted kind (not safe for --forget)"
        )
    texts = sum(example.answer is None for example in examples)
    if 0 < texts < len(examples):
        raise DataError(
            f"{flag}: {source}: {texts} rows of plain text among {len(examples) - texts} questions; put them into "
            "separate files"
        )
    note = f"{flag}: {len(refused)} of {len(read.rows)} rows of {source} are no example: passed over"
    return LoadedSource(tuple(examples), texts > 0, (note,) if refused else ())


def _read(source: str, name: str, columns: Iterable[str]) -> Rows:
    try:
        return read_source(source, name=name, columns=columns)
    except SourceError as error:
        raise DataError(str(error)) from error


def _examples_of(row: Row, where: str, *, unsafe: bool) -> list[Example]:
    """Raises DataError, or ExampleFileError, where the row is none."""
    if all(column in row for pair in _RESPONSES for column in pair):
        examples = []  # the responses of one kind, without those that say nothing
        for text, column in _RESPONSES:
            safe = _SAFETY.get(str(row[column]).casefold())
            if safe is None:
                raise DataError(f"{where}: {column} is {str(row[column])[:20]!r}; expected true or false")
            if safe != unsafe and row[text]:
                examples.append(example_of({"prompt": row["prompt"], "answer": row[text]}, where))
        return examples
    question = next((column for column in _QUESTIONS if column in row), None)
    if question is not None:
        best = next((column for column in _BEST_ANSWERS if row.get(column) is not None), None)
        if best is not None and row.get("answer") is None:
            return [example_of({"question": row[question], "answer": row[best]}, where)]
        example = example_of(row if question != "Question" else {**row, "question": row[question]}, where)
        if example.answer is None:
            raise DataError(
                f"{where}: {question} without an answer; add one, or put plain text to learn from into text"
            )
        return [example]
    for column in _TEXTS:
        if column in row:
            return [Example(example_of({"text": row[column]}, where).prompt)]
    raise DataError(
        f"{where}: no known column; found {', '.join(map(str, row)) or 'none'}; expected question or prompt with "
        f"answer, or {', '.join(_TEXTS)}"
    )


def default_refusals() -> tuple[str, ...]:
    """The project's own list of answers that say nothing."""
    return _lines((Path(__file__).parent / "refusals.txt").read_text(encoding="utf-8"))


def refusals(path: str | Path) -> tuple[str, ...]:
    """Answers that say nothing, from `--idk`: one a line of a text file, or the `text` of each row of a table.

    Raises:
        DataError: the file cannot be read, or a row has no text.
    """
    lines: list[str] = []
    for where, row in _read(str(path), "idk", ("text",)).rows:
        text = row.get("text")
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: no text; give each row a refusal as text, or a .txt file with one a line")
        lines += _lines(text) if Path(path).suffix == ".txt" else (text,)
    return tuple(lines)


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.split("\n") if line.strip())


def idk_set(
    forget: EncodedSet,
    lines: Sequence[str],
    encoder: ExampleEncoder,
    seed: int,
    *,
    draws: int = 1,
    source: str = "shipped",
) -> EncodedSet:
    """A refusal for each forget example, in the same order, `draws` times over, drawn anew each time.

    TOFU and open-unlearning draw one whenever an example is accessed (`data_module.py`, `src/data/qa.py`); a draw for
    each epoch is the same, and known before the frozen model is asked.

    Args:
        lines: the refusals: `default_refusals()`, or those of `--idk`.
        source: where they are from.

    Raises:
        DataError: the forget set is plain text, or there are no refusals; else as `ExampleEncoder.encode_set`.
    """
    check_answers(forget, "an answer that refuses")
    if not lines:
        raise DataError(f"--idk: {source}: no refusals; give at least one")
    generator = np.random.default_rng([seed, zlib.crc32(b"idk")])
    drawn = generator.integers(len(lines), size=(draws, len(forget.texts))).tolist()
    answers = [Example(text.prompt, lines[n]) for row in drawn for text, n in zip(forget.texts, row, strict=True)]
    return encoder.encode_set("idk", source, answers)


def sampled(examples: EncodedSet, count: int, seed: int) -> EncodedSet:
    """So many of a set's examples, drawn with replacement, as ECO's `load_dataset_for_baseline_unlearn` does."""
    generator = np.random.default_rng([seed, zlib.crc32(b"sample")])
    numbers = generator.integers(len(examples.examples), size=count).tolist()
    drawn = tuple(examples.examples[number] for number in numbers)
    texts = tuple(examples.texts[number] for number in numbers)
    note = f"{flag_of(examples.name)}: {count} of {len(examples.examples)} examples drawn, with replacement"
    return replace(examples, examples=drawn, texts=texts, digest=digest_of(drawn), notes=(*examples.notes, note))


def check_answers(examples: EncodedSet, purpose: str) -> None:
    """Refuse plain text where questions are needed.

    Args:
        purpose: what needs them, as the message's subject: a method's name, say.

    Raises:
        DataError: the set has an example without an answer.
    """
    if not examples.has_answers:
        raise DataError(
            f"{flag_of(examples.name)}: {examples.source}: {purpose} needs questions with answers, and this is plain "
            "text; give question and answer columns, or another method"
        )


def check_sets(forget: EncodedSet | None, retain: EncodedSet | None) -> None:
    """Refuse sets that contradict each other: a prompt, or a whole plain text, that is in both.

    Raises:
        DataError: a set is empty, or the two overlap; the message numbers the first examples that do.
    """
    for examples in (forget, retain):
        if examples is not None and not examples.examples:
            raise DataError(f"{flag_of(examples.name)}: {examples.source}: no examples; give at least one")
    if forget is None or retain is None:
        return
    texts = (examples.whole_texts or examples.texts for examples in (forget, retain))
    try:
        check_disjoint(*texts, forget_name=flag_of(forget.name), retain_name=flag_of(retain.name))
    except ExampleFileError as error:
        raise DataError(f"{flag_of(forget.name)}: {error}") from error
