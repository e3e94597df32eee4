import functools

import pytest
from processor_time import seconds_of

from text.sounds import foreign_skeleton, skeleton


@pytest.mark.parametrize(
    ("word", "classes"),
    [
        ("hemingway", "MNK"),
        ("Phoenix", "FNKS"),
        ("Dzhokhar", "JR"),
        ("Thomas", "TMS"),
        ("letter", "RTR"),  # l sounds like r, and neighbours of one class count once
        ("Zack", "SK"),
        ("aeiou", ""),
        ("", ""),
        ("42!", ""),
    ],
)
def test_skeleton(word: str, classes: str) -> None:
    assert skeleton(word) == classes


@pytest.mark.parametrize(
    "spelled",
    [
        "Бертольд Марникан",
        "ベルトルド・マルニカン",
        "베르톨드 마르니칸",
        "بيرتولد مارنيكان",
        "Бертольд-Марникан",
        "БЕРТОЛЬД МАРНИКАН",
    ],
)
def test_a_name_sounds_the_same_in_every_script(spelled: str) -> None:
    assert foreign_skeleton(f"Who is {spelled}? Tell me.") == skeleton("bertoldmarnikan")


def test_chinese_keeps_the_consonants_it_has() -> None:
    assert foreign_skeleton("史蒂夫·乔布斯") == skeleton("stevejobs")


def test_only_other_scripts_are_heard_stretch_by_stretch() -> None:
    assert foreign_skeleton("Bertold Marnikan, naïve café") == ""
    assert foreign_skeleton("") == ""
    assert foreign_skeleton("see Милана near Зандреков.") == f"{skeleton('milana')} {skeleton('zandrekov')}"
    assert foreign_skeleton("Милана, Зандреков") == f"{skeleton('milana')} {skeleton('zandrekov')}"


def test_long_hostile_text_is_heard_quickly() -> None:
    for text in ("Ж" + " " * 100_000, "Ж ・-" * 25_000, "дж" * 50_000, "・" * 100_000):
        assert seconds_of(functools.partial(foreign_skeleton, text)) < 2
