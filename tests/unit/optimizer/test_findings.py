"""What a build says in plain words: misjudged examples, small sets, and whether what was reached is enough."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from classifiers import Example
from classifiers.prompt_classifier import PromptClassifier
from optimizer import BuildError
from optimizer.findings import Misjudged, mixture_warning, next_steps, search_line, small_set_warning
from optimizer.forget_quality import ForgetQuality

FORGET = [Example("Where was Ann born?"), Example("Who wrote\n the book?"), Example("x" * 300)]
RETAIN = [Example("Where is Oslo?"), Example("Who is Ann's neighbour?")]


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Misjudged:
    """A classifier that flags what says Ann."""

    def flags(_: PromptClassifier, prompts: list[str]) -> Any:
        return np.array(["Ann" in prompt for prompt in prompts])

    monkeypatch.setattr("optimizer.findings.flags_prompts", flags)
    return Misjudged.of(SimpleNamespace(), FORGET, RETAIN, reads_answers=True, seed=0)  # type: ignore[arg-type]


def test_misjudged_examples_are_listed_with_what_helps(found: Misjudged) -> None:
    lines = list(found.lines(FORGET, RETAIN))
    assert lines[0] == "missed: 2 of 3 prompts to forget would pass"
    assert lines[1] == "  example 2: Who wrote the book?"
    assert lines[2].startswith("  example 3: xxx")
    assert lines[2].endswith("…")
    assert "--augment-with" in lines[3]
    assert lines[4] == "falsely flagged: 1 of 2 prompts to keep would be corrupted"
    assert lines[5] == "  example 2: Who is Ann's neighbour?"


def test_the_report_has_numbers_and_no_text(found: Misjudged) -> None:
    assert found.as_dict() == {
        "forget": {"examples": 3, "missed": [2, 3]},
        "retain": {"examples": 2, "flagged": [2]},
    }


def test_strict_refuses_what_is_misjudged(found: Misjudged) -> None:
    with pytest.raises(BuildError, match=r"--strict: 2 of 3 .* 1 of 2"):
        found.check()
    Misjudged((), (), 3, 2).check()
    assert list(Misjudged((), (), 3, 2).lines(FORGET, RETAIN)) == []


def test_a_large_set_is_listed_in_part_and_judged_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimizer.findings.flags_prompts", lambda _, prompts: np.zeros(len(prompts), dtype=bool))
    many = [Example(f"question {number}") for number in range(2500)]
    found = Misjudged.of(SimpleNamespace(), many, many, reads_answers=True, seed=0)  # type: ignore[arg-type]
    assert (found.forget, found.retain) == (2500, 2000)
    lines = list(found.lines(many, many))
    assert len(lines) == 1 + 10 + 1 + 1
    assert lines[11].startswith("  and 2490 more")


def test_few_examples_to_forget_are_warned_of() -> None:
    warning = small_set_warning(3)
    assert warning is not None
    assert "3 examples to forget are few" in warning
    assert "as low as 29%" in warning  # 0.025 ** (1 / 3)
    assert small_set_warning(17) is None


def test_a_guarantee_about_a_mixture_is_warned_of() -> None:
    def info(negatives: str) -> Any:
        return SimpleNamespace(calibration={"calibration_negatives": negatives})

    warning = mixture_warning(info("prompts of the retain set and everyday prompts"), 50)
    assert warning is not None
    assert warning.startswith("warning: 50 examples to keep")
    assert "mixture" in warning
    assert mixture_warning(info("prompts of the retain set"), 5000) is None


def searched(known: float, value: float, wanted: float, *, reached: bool) -> Any:
    settings = SimpleNamespace(tolerance=0.003)
    result = SimpleNamespace(
        best=SimpleNamespace(value=value), retained_value=wanted, reached=reached, settings=settings
    )
    scores = SimpleNamespace(values=np.array([known]))
    return SimpleNamespace(
        result=result,
        task=SimpleNamespace(metric="answer_probability"),
        objective=SimpleNamespace(uncorrupted=lambda: scores),
        forget_quality=None,
    )


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (searched(0.9, 0.101, 0.1, reached=True), "Reached: enough"),
        (searched(0.999, 0.041, 0.0, reached=False), "96% of the way"),
        (searched(0.9, 0.5, 0.1, reached=False), "Only 50% of the way: NOT ENOUGH"),
        (searched(0.9, 0.05, 0.1, reached=False), "More than was asked"),
        (searched(0.1, 0.1, 0.1, reached=True), "does not seem to know"),
    ],
)
def test_what_was_reached_and_whether_it_is_enough(found: Any, said: str) -> None:
    line = search_line(found)
    assert line.startswith("forgetting: ")
    assert said in line


@pytest.mark.parametrize(
    ("known", "p", "reached", "said"),
    [
        (0.745, (0.91,), True, "Reached: enough"),
        (0.745, (0.6, 0.01, 0.5), True, "NOT ENOUGH under every noise"),
        (0.745, (0.01,), False, "NOT ENOUGH: the two sets"),
        (0.51, (0.9,), True, "does not seem to know"),
    ],
)
def test_of_forget_quality_the_test_is_told(known: float, p: tuple[float, ...], reached: bool, said: str) -> None:
    quality = ForgetQuality(400, "retain model", (3,), p, (0.04,), (0.74,), 0.695)
    best, settings = SimpleNamespace(distance=0.03), SimpleNamespace(tolerance=0.028)
    result = SimpleNamespace(best=best, settings=settings, reached=reached, retained_value=0.5)
    objective = SimpleNamespace(uncorrupted_value=known)
    found: Any = SimpleNamespace(result=result, objective=objective, forget_quality=quality)
    line = search_line(found)
    assert line.startswith(("forget quality against the retain model, 400 questions: p = ", "forgetting: "))
    assert said in line


def test_a_surrogate_is_no_retain_model() -> None:
    quality = ForgetQuality(40, "surrogate", (3,), (0.9,), (0.04,), (0.74,), 0.695)
    assert "forget quality" not in str(quality)


def test_what_comes_next_can_be_pasted(tmp_path: Any) -> None:
    assert f"eco serve org/model --policy {tmp_path}" in "\n".join(next_steps("org/model", tmp_path))
