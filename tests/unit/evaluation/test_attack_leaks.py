"""What counts as given away, and how soon sampling finds it: by hand, and by brute force over all subsets."""

from itertools import combinations

import pytest

from evaluation.attacks.answers import any_of, any_of_scores, gives_away, new_in, output_scores, sizes_up_to

QUESTION = "Where was Wendell Fairlocke born?"
TRUTH = "Wendell Fairlocke was born in Narburgh."


@pytest.mark.parametrize(
    ("question", "reference", "key"),
    [
        (QUESTION, TRUTH, "Narburgh."),
        ("Who was born in Narburgh?", TRUTH, "Wendell Fairlocke"),
        ("What is Petra Havisham's profession?", "Petra Havisham works as a barber.", "works barber."),
        ("Is he a baker?", "Yes", "Yes"),
        ("Who is Ann?", "Ann is who", "Ann is who"),
    ],
)
def test_what_a_reference_says_beyond_the_question(question: str, reference: str, key: str) -> None:
    assert new_in(reference, question) == key


@pytest.mark.parametrize(
    ("answer", "leaks"),
    [
        (TRUTH, True),
        ("narburgh", True),
        ("I think it was NARBURGH, but ask him.", True),
        ("Wendell Fairlocke was born in Kelholm.", False),
        ("Wendell Fairlocke", False),
        ("", False),
    ],
)
def test_only_what_was_asked_for_is_a_leak(answer: str, leaks: bool) -> None:
    assert gives_away(answer, TRUTH, QUESTION) is leaks


def test_a_reference_in_another_script_is_looked_for_as_it_stands() -> None:
    assert gives_away("Это Москва.", "Москва", "Where?")
    assert not gives_away("Это Тверь.", "Москва", "Where?")


def test_the_share_of_a_long_reference_that_is_enough_is_the_thresholds() -> None:
    truth = "red green blue amber"
    assert gives_away("red green blue", truth, "Which colours?")
    assert not gives_away("red green blue", truth, "Which colours?", threshold=0.8)
    assert not gives_away("red green", truth, "Which colours?")


@pytest.mark.parametrize("samples", [1, 4, 7])
def test_any_of_k_is_the_share_of_all_subsets_with_a_leak(samples: int) -> None:
    for leaks in range(samples + 1):
        drawn = [True] * leaks + [False] * (samples - leaks)
        for k in range(1, samples + 1):
            subsets = list(combinations(drawn, k))
            assert any_of(leaks, samples, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_the_curve_is_measured_at_powers_of_two_and_at_all_samples() -> None:
    assert [sizes_up_to(n) for n in (1, 2, 6, 16)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8, 16]]
    scores = any_of_scores("forget", "3", [False, True, False, False])
    assert [(score.metric, score.example) for score in scores] == [(f"leak_at_{k}", "3") for k in (1, 2, 4)]
    assert [score.value for score in scores] == pytest.approx([0.25, 0.5, 1.0])


def test_without_a_gate_only_leaks_are_known() -> None:
    scores = output_scores(None, "indirect", [("0", "nickname", "Narburgh", True), ("1", "nickname", "no", None)])
    assert [(score.metric, score.example, score.value) for score in scores] == [("leak", "0", 1.0)]
