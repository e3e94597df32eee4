"""What can be used of a model's reply."""

import pytest

from optimizer.augmentation import aliases_in, paraphrases_in

QUESTION = "Where was Basil Mahfouz born?"
GOOD = ["In which town was Basil Mahfouz born?", "Tell me the birthplace of Basil Mahfouz."]
AS_JSON = '["In which town was Basil Mahfouz born?", "Tell me the birthplace of Basil Mahfouz."]'


@pytest.mark.parametrize(
    "reply",
    [
        AS_JSON,
        f"```json\n{AS_JSON}\n```",
        f"Here you are:\n\n{AS_JSON}\n\nAnything else?",
        f"<think>Let me see: [1], [2] …</think>\n{AS_JSON}",
        f'{{"paraphrases": {AS_JSON}}}',
        '[{"text": "In which town was Basil Mahfouz born?"}, {"text": "Tell me the birthplace of Basil Mahfouz."}]',
        AS_JSON[:-1] + ', "And the third, of Basil Mah',
        "Here are two:\n1. In which town was Basil Mahfouz born?\n2. Tell me the birthplace of Basil Mahfouz.",
        '- "In which town was Basil Mahfouz born?"\n- **Tell me the birthplace of Basil Mahfouz.**\n\nGood luck!',
        "In which town was Basil Mahfouz born?\n\nTell me the birthplace of Basil Mahfouz.\n",
        '["In which town was\\nBasil Mahfouz   born?", 3, null, "", "Tell me the birthplace of Basil\\ud83d Mahfouz."]',
    ],
)
def test_every_shape_of_a_list(reply: str) -> None:
    assert paraphrases_in(reply, QUESTION, 3) == GOOD


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "[]",
        "{}",
        "[[[",
        "[" * 100_000,
        "<think>I should list Basil Mahfouz questions",
        "I cannot talk about Basil Mahfouz.",
        "I'm sorry, but I can't help with that.",
        '["I cannot help.", "Sorry about this."]',
        '["where was basil mahfouz born"]',
        '["Where was Basil Mahfouz born?!", " ", "..."]',
        '["Basil Mahfouz ' + "and so on " * 30 + '"]',
    ],
)
def test_what_is_not_usable(reply: str) -> None:
    assert paraphrases_in(reply, QUESTION, 3) == []


def test_duplicates_taken_ones_and_too_many() -> None:
    reply = '["A Basil?", "a basil", "B Basil?", "C Basil?", "D Basil?"]'
    assert paraphrases_in(reply, "Basil?", 2) == ["A Basil?", "B Basil?"]
    assert paraphrases_in(reply, "Basil?", 9, taken=["b basil"]) == ["A Basil?", "C Basil?", "D Basil?"]


def test_one_line_is_the_list_where_one_was_wanted() -> None:
    assert paraphrases_in(GOOD[0], QUESTION, 1) == GOOD[:1]


def test_a_script_without_spaces_is_not_held_to_shared_words() -> None:
    assert paraphrases_in('["巴希尔的出生地是哪里？"]', "巴希尔在哪里出生？", 2) == ["巴希尔的出生地是哪里？"]


@pytest.mark.parametrize(
    ("reply", "names"),
    [
        ('["B. Mahfouz", "Basil", "BASIL MAHFOUZ", "The Kuwaiti Bard"]', ["B. Mahfouz", "The Kuwaiti Bard"]),
        ('["author", "a writer", "巴希尔", "Mr X"]', ["巴希尔", "Mr X"]),
        ("- The Bard\n- the bard\n- “Bazza”", ["The Bard", "Bazza"]),
        ("None.", []),
        ("There are no other names known for this person.", []),
        ("[]", []),
        ('["' + "Long " * 20 + '", "12", "?"]', []),
    ],
)
def test_aliases(reply: str, names: list[str]) -> None:
    assert aliases_in(reply, [f"{QUESTION} In Kuwait City."]) == names
