"""Made-up answers to the questions to forget, which AltPO prefers to the true ones.

Read is what AltPO's and open-unlearning's `generate.py` write: a row for each alternative with `question`, and
`sub_answer` or `alternate`; and rows with a list of them. The questions may be those of the forget set's own file.
"""

from collections import defaultdict
from typing import Any

from offline_training.data.encoding import EncodedSet, ExampleEncoder
from offline_training.data.sets import check_answers
from offline_training.errors import DataError
from sources import SourceError, flag_of, read_source
from sources.examples import Example
from text.normalise import normalise

_QUESTIONS = ("question", "prompt")
_ALTERNATIVES = ("alternate", "sub_answer", "alternatives")


def alternative_sets(forget: EncodedSet, source: str | None, encoder: ExampleEncoder) -> tuple[EncodedSet, EncodedSet]:
    """The forget set with each question as often as it has alternatives, and those, in the same order.

    Args:
        source: of `--alternatives`; None: the forget set's own.

    Raises:
        DataError: the source cannot be read, a row of it has no question or alternative, or a question of the forget
            set has no alternative; else as `ExampleEncoder.encode_set`.
    """
    check_answers(forget, "method altpo")
    name, origin = ("forget", forget.source) if source is None else ("alternatives", source)
    known = _read(origin, name)
    pairs: list[tuple[Example, str]] = []
    for text in dict.fromkeys(forget.texts):  # a file with a row for each alternative has its questions as often
        found = known.get(normalise(text.prompt))
        if not found:
            raise DataError(
                f"--alternatives: {origin}: no other answer to {text.prompt[:60]!r} of --forget; give each question at "
                f"least one as {_ALTERNATIVES[0]}"
            )
        pairs += [(text, one) for one in found]
    repeated = encoder.encode_set(forget.name, forget.source, [text for text, _ in pairs])
    others = [Example(text.prompt, one) for text, one in pairs]
    return repeated, encoder.encode_set("alternatives", origin, others)


def _read(source: str, name: str) -> dict[str, list[str]]:
    """Question, normalised -> its alternatives, in the order of the file."""
    try:
        rows = read_source(source, name=name, columns=(*_QUESTIONS, *_ALTERNATIVES)).rows
    except SourceError as error:
        raise DataError(str(error)) from error
    found: dict[str, list[str]] = defaultdict(list)
    for where, row in rows:
        question = next((row[column] for column in _QUESTIONS if column in row), None)
        given = next((row[column] for column in _ALTERNATIVES if row.get(column) is not None), None)
        answers: list[Any] = given if isinstance(given, list) else [given]
        if not isinstance(question, str):
            raise DataError(f"{where}: no question; give each row one as {_QUESTIONS[0]}")
        if not answers or not all(isinstance(answer, str) and answer.strip() for answer in answers):
            hint = "" if name == "alternatives" else f", or a file of them with {flag_of('alternatives')}"
            raise DataError(f"{where}: no alternative answer; give it as {_ALTERNATIVES[0]}, text or a list{hint}")
        found[normalise(question)] += answers
    return found
