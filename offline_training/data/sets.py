"""Sets of tokenised examples: the only thing of a job's data that a trainer sees.

Here too is every refusal of data that cannot be trained on. Nothing in here loads a model's weights.
"""

import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from classifiers.errors import ExampleFileError
from offline_training.data.columns import load_examples, rows_of
from offline_training.data.encoding import EncodedSet, ExampleEncoder
from offline_training.errors import DataError
from sources import flag_of
from sources.examples import Example, check_disjoint

__all__ = [
    "EncodedSet",
    "ExampleEncoder",
    "check_answers",
    "check_sets",
    "default_refusals",
    "idk_set",
    "load_set",
    "refusals",
]

_SHIPPED_REFUSALS = Path(__file__).parent / "data" / "refusals.txt"


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


def default_refusals() -> tuple[str, ...]:
    """The project's own list of answers that say nothing."""
    return _lines(_SHIPPED_REFUSALS.read_text(encoding="utf-8"))


def refusals(path: str | Path) -> tuple[str, ...]:
    """Answers that say nothing, from `--idk`: one a line of a text file, or the `text` of each row of a table.

    Raises:
        DataError: the file cannot be read, or a row has no text.
    """
    found: list[str] = []
    for where, row in rows_of(str(path), name="idk", columns=("text",)).rows:
        text = row.get("text")
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: no text; give each row a refusal as text, or a .txt file with one a line")
        found += _lines(text) if Path(path).suffix == ".txt" else (text,)
    return tuple(found)


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.split("\n") if line.strip())


def idk_set(
    forget: EncodedSet, lines: Sequence[str], encoder: ExampleEncoder, seed: int, *, source: str = "shipped"
) -> EncodedSet:
    """One refusal for each forget example, in the same order, drawn once with the seed.

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
    drawn = generator.integers(len(lines), size=len(forget.texts)).tolist()
    answers = [Example(text.prompt, lines[number]) for text, number in zip(forget.texts, drawn, strict=True)]
    return encoder.encode_set("idk", source, answers)


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
