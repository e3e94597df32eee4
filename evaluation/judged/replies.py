"""What a judge's words come to: the grade in its reply. Text in, number out; nothing in here asks anything.

A judge is told to end with one line, `GRADE: n`. Only that line decides: a grade that is quoted from the judged text,
in the middle of the judge's reasoning, is not one.
"""

import json
import re

__all__ = ["read_grade"]

#: An unclosed one too: a reply that was cut off while the judge was thinking has no verdict.
_THINKING = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"\A```(?:json)?\s*(.*?)\s*```\Z", re.DOTALL)
_MARKS = str.maketrans("", "", "*_`#\"'[]")
#: `GRADE: 2`, `grade = 2.`, `Grade: 2/3`.
_LINE = re.compile(r"\Agrade\s*[:=]\s*(-?\d+)(?:\s*/\s*\d+)?\s*\.?\Z", re.IGNORECASE)
_NUMBER = re.compile(r"\A(-?\d+)\s*\.?\Z")


def read_grade(reply: str, lowest: int, highest: int) -> int | None:
    """The grade, or None where the reply has none, or one that is not between `lowest` and `highest`.

    Read are a last line `GRADE: n` (its markup aside), a reply that is nothing but a number, and a reply that is one
    JSON object with the key `grade`. What a reasoning model puts between <think> tags is passed over.
    """
    text = _THINKING.sub("", reply).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip().strip("`")]
    if not lines:
        return None
    found = _LINE.match(lines[-1].translate(_MARKS).strip())
    if found is None and len(lines) == 1:
        found = _NUMBER.match(lines[0].translate(_MARKS).strip())
    grade = int(found[1]) if found else _json_grade(text)
    return grade if grade is not None and lowest <= grade <= highest else None


def _json_grade(text: str) -> int | None:
    fenced = _FENCE.match(text)
    try:
        parsed = json.loads(fenced[1] if fenced else text)
    except (json.JSONDecodeError, RecursionError):
        return None
    grade = parsed.get("grade") if isinstance(parsed, dict) else None
    return grade if isinstance(grade, int) and not isinstance(grade, bool) else None
