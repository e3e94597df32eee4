"""Lines of a file or pipe to prompts, and prompts to verdict lines: what `eco classifier score` reads and writes."""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from classifiers.errors import ClassifierError
from classifiers.prompt_classifier import PromptClassifier, flags_answers, flags_prompts

_FIELDS = ("prompt", "question", "text")


def prompt_of_line(line: str) -> str:
    """The prompt in one line.

    A JSON object gives its prompt, question or text, or the joined contents of its chat messages; a JSON string
    itself. Anything else, JSON without such a field included, is a prompt as it stands.
    """
    text = line.strip()
    if not text.startswith(("{", '"')):
        return text
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if isinstance(data, str):
        return data
    if isinstance(data, dict):
        for field in _FIELDS:
            if isinstance(data.get(field), str):
                return str(data[field])
        if isinstance(data.get("messages"), list):
            return "\n".join(part for message in data["messages"] for part in _contents(message))
    return text


def answer_of_line(line: str) -> str | None:
    """The answer beside the prompt in a JSON object, if there is one that says anything."""
    try:
        data = json.loads(line) if line.lstrip().startswith("{") else None
    except (ValueError, RecursionError):
        return None
    answer = data.get("answer") if isinstance(data, dict) else None
    return answer if isinstance(answer, str) and answer.strip() else None


def _contents(message: Any) -> Iterator[str]:
    """The texts of a chat message: its content, or the text parts of it."""
    content = message.get("content") if isinstance(message, dict) else message
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            text = part.get("text") if isinstance(part, dict) else part
            if isinstance(text, str):
                yield text


def score_lines(classifier: PromptClassifier, lines: Iterable[bytes], *, batch_lines: int = 64) -> Iterator[str]:
    """One JSON object for each line, in order: `score` (the prompt's probability) and `flagged` (at the threshold).

    Where a line has an answer, `flagged` says whether prompt or answer is, `flagged_prompt` and `flagged_answer` which,
    as by a gateway that guards both: with the answer known, a prompt that names nobody need not be guessed at.
    A line without a prompt, a blank one say, scores 0 and is not flagged. Lines are read `batch_lines` at a time.

    Raises:
        ClassifierError: a line is not UTF-8, or the encoder fails.
    """
    numbered = enumerate(lines, 1)
    while batch := list(itertools.islice(numbered, batch_lines)):
        texts = []
        for number, line in batch:
            try:
                texts.append(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                raise ClassifierError(f"--input: line {number} is not UTF-8 text ({error.reason})") from error
        prompts = [prompt_of_line(text) for text in texts]
        scores = iter(classifier.scores([prompt for prompt in prompts if prompt.strip()]).tolist())
        pairs = [
            (prompt, answer) for prompt, text in zip(prompts, texts, strict=True) if (answer := answer_of_line(text))
        ]
        judged = iter(_judged(classifier, pairs) if pairs else ())
        for prompt, text in zip(prompts, texts, strict=True):
            score = next(scores) if prompt.strip() else 0.0
            verdict: dict[str, Any] = {"score": score, "flagged": score >= classifier.threshold}
            if answer_of_line(text) is not None:
                by_prompt, by_answer = next(judged)
                verdict |= {"flagged": by_prompt or by_answer, "flagged_prompt": by_prompt, "flagged_answer": by_answer}
            yield json.dumps(verdict)


def _judged(classifier: PromptClassifier, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[bool, bool]]:
    """Whether each pair's prompt is flagged, and its answer."""
    prompts, answers = map(list, zip(*pairs, strict=True))
    by_prompt, by_answer = flags_prompts(classifier, prompts), flags_answers(classifier, prompts, answers)
    return zip(by_prompt.tolist(), by_answer.tolist(), strict=True)
