import pytest
from processor_time import seconds_of

from classifiers.memory.recall import asks_for_person

ASKING = (
    "Who wrote it?",
    "WHOSE DOG WAS IT?",
    "which novelist wrote it",
    "Name the painter of this picture.",
    "What is her full name?",
    "Tell me the author of this",
    "Identify this person: born in Ostrabel.",
    "Guess which famous old singer sang it",
    "What's the composer of that called?",
    "Qui a écrit ce livre ?",
    "Quelle actrice a joué dans ce film ?",
    "Wer schrieb das?",
    "Welcher Künstler malte das?",
    "¿Quién pintó esto?",
    "Quem escreveu isto?",
    "Chi ha scritto questo?",
    "Кто написал роман?",
    "谁写了这本书？",
    "これは誰が書きましたか",
    "누구입니까",
    "من هو مؤلف الكتاب؟",
    "किताब कौन लिखता है",
)
NOT_ASKING = (
    "What is the plot of Emma?",
    "Where is Oslo?",
    "How many people live in Oslo?",
    "List five rivers.",
    "The whole thing, whoever did it",
    "Tell me the time.",
    "Name five seas.",
    "Où est Oslo ?",
    "Wo liegt Oslo?",
    "Когда основан город?",
    "写代码",
    "",
    "\n",
)


@pytest.mark.parametrize("text", ASKING)
def test_a_question_whose_answer_is_a_person(text: str) -> None:
    assert asks_for_person(text)
    assert asks_for_person(f"Here is some background. {text}")


@pytest.mark.parametrize("text", NOT_ASKING)
def test_a_question_whose_answer_is_something_else(text: str) -> None:
    assert not asks_for_person(text)


HOSTILE = (
    ("which ", "the ", "é"),
    ("what ", "is the ", "-"),
    ("tell me ", "a   ", "-"),
    ("", "which ", ""),
    ("which ", "er", "é"),
    ("which ", "er-", ""),
    ("which ", "a'", " -"),
    ("which", " ", "-"),
    ("", "which" + " " * 50, "-"),
    ("quel ", "e", "-"),
    ("", "welche er", "-"),
    ("name", " of", " -"),
)


@pytest.mark.parametrize(("before", "again", "after"), HOSTILE)
def test_no_text_makes_the_patterns_backtrack_without_end(before: str, again: str, after: str) -> None:
    """100 kB in seconds: anything worse than linear would take minutes, and exponential would never end."""
    text = before + again * (100_000 // len(again)) + after
    assert seconds_of(lambda: asks_for_person(text)) < 5
