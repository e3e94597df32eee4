import json
from collections.abc import Iterator

import numpy as np
import pytest
from invented_people import World, build_world
from scipy.sparse import csr_array

from classifiers import (
    CalibrationSettings,
    Encoder,
    Example,
    ExampleFileError,
    Head,
    TrainingError,
    TrainingReport,
    extract_features,
    general_prompts,
    train_head,
)
from classifiers.calibration.threshold import choose_threshold, fit_platt, rates
from classifiers.training import head as training
from classifiers.training.corpus import build_corpus
from classifiers.training.head import fit_logistic
from classifiers.training.variations import training_texts
from text.names import words_of
from text.reading import windows_of


@pytest.fixture(scope="module")
def world() -> World:
    return build_world()


@pytest.fixture(scope="module", autouse=True)
def _fewer_everyday_prompts() -> Iterator[None]:
    """Training takes a fifth of the time, and finds the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "general_prompts", lambda: general_prompts()[::6])
        yield


@pytest.fixture(scope="module")
def trained(encoder: Encoder, world: World, _fewer_everyday_prompts: None) -> tuple[Head, TrainingReport]:
    return train_head(encoder, world.forget, world.retain, seed=0)


def scores(encoder: Encoder, head: Head, texts: list[str]) -> np.ndarray:
    return np.array([max(head.score(one) for one in extract_features(encoder, windows_of(text))) for text in texts])


def test_unseen_phrasing_is_told_apart(encoder: Encoder, world: World, trained: tuple[Head, TrainingReport]) -> None:
    head, _ = trained
    assert (scores(encoder, head, world.forgotten_unseen) >= head.threshold).all()
    assert (scores(encoder, head, world.retained_unseen) < head.threshold).all()


def test_forbidden_question_inside_other_text_is_found(
    encoder: Encoder, world: World, trained: tuple[Head, TrainingReport]
) -> None:
    head, _ = trained
    padding = (
        "The ferry left the harbour before sunrise, and most passengers slept through the first hour. Later somebody "
        "opened a window, the smell of coffee filled the cabin and a boy began to count the islands. "
    ) * 3
    hidden = [padding + example.prompt + " " + padding for example in world.forget]
    assert (scores(encoder, head, hidden) >= head.threshold).all()
    # Who shares no name with a forgotten person: a window may end between a first name and the last name after it.
    names = {word for subject in head.memory.subjects for word in subject.words}
    others = [example for example in world.retain if names.isdisjoint(words_of(example.prompt))]
    benign = [padding + example.prompt + " " + padding for example in others[::3]]
    assert len(benign) > 20
    assert (scores(encoder, head, benign) < head.threshold).all()


def test_disguises_change_nothing(encoder: Encoder, world: World, trained: tuple[Head, TrainingReport]) -> None:
    head, _ = trained
    plain = [example.prompt for example in world.forget]
    disguised = ["\u200b".join(text.replace("a", "а").replace("o", "ο")) for text in plain]
    np.testing.assert_allclose(scores(encoder, head, disguised), scores(encoder, head, plain), atol=1e-5)


def test_report(world: World, trained: tuple[Head, TrainingReport]) -> None:
    head, report = trained
    trained_on = len(world.forget), len(world.retain) - len(world.retain) // 5  # a fifth is kept for calibration
    assert (report.forget_examples, report.retain_examples) == trained_on
    assert (report.training.missed, report.training.false_positives) == (0, 0)
    assert (report.training.positives, report.training.negatives) == trained_on
    assert report.cross_fitted.false_positive_rate <= 0.02  # what `train_head` holds its preferred cut to by default
    assert report.folds > 1
    assert report.threshold == head.threshold == report.calibration.threshold
    assert len(report.subjects) == 3
    plain = json.loads(json.dumps(report.as_dict()))
    assert plain["training"]["recall"] == 1.0
    assert plain["subjects"] == list(report.subjects)
    assert plain["calibration"]["rates"]["false_positives"] == report.calibration.rates.false_positives
    assert plain["calibration"]["guarantee"] == report.calibration.guarantee
    assert plain["assessment"]["groups"]["retain"]["false_positives"]["total"] == len(world.retain) // 5


def test_heavier_forget_class_raises_scores() -> None:
    rng = np.random.default_rng(0)
    labels = np.array([1.0] * 5 + [0.0] * 95)
    points = rng.normal(size=(100, 384))
    points[:5] += 0.3
    means = []
    for share in (0.05, 0.5):
        weights, bias = fit_logistic(
            csr_array(points), labels, np.where(labels == 1, share / 5, (1 - share) / 95), l2=0.1
        )
        means.append(float((points[:5] @ weights + bias).mean()))
    assert means[1] > means[0] + 1


def test_logistic_regression_agrees_with_torch() -> None:
    import torch

    rng = np.random.default_rng(1)
    design = rng.normal(size=(60, 40)) * (rng.random((60, 40)) < 0.4)
    design[:, 7] = 0.0  # a bucket that no text fills
    labels, weights = (rng.random(60) < 0.4).astype(np.float64), rng.random(60) / 30
    found, bias = fit_logistic(csr_array(design), labels, weights, l2=0.01)

    inputs, targets = torch.tensor(design), torch.tensor(labels)
    point = torch.zeros(41, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([point], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = inputs @ point[:-1] + point[-1]
        losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        loss = (torch.tensor(weights) * losses).sum() + 0.005 * (point[:-1] ** 2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    np.testing.assert_allclose([*found, bias], point.detach().numpy(), atol=1e-3)
    assert found[7] == 0


def test_threshold_lies_in_the_middle_of_the_margin() -> None:
    scores = np.array([-3.0, -2.0, 2.0, 4.0])
    assert choose_threshold(scores, np.array([0.0, 0.0, 1.0, 1.0]), 0.0) == 0.0
    # one false positive among 200 is worth catching one positive of four, where the bound allows it
    scores = np.concatenate([np.linspace(-4, -2, 199), [1.5], [1.0, 5.0, 6.0, 7.0]])
    labels = np.repeat([0.0, 1.0], [200, 4])
    assert choose_threshold(scores, labels, 0.01) == pytest.approx(-0.5)
    assert choose_threshold(scores, labels, 0.0) == pytest.approx(3.25)
    assert choose_threshold(np.zeros(4), np.array([0.0, 0.0, 1.0, 1.0]), 0.0) == 1.0


def test_platt_is_increasing_and_finite() -> None:
    labels = np.repeat([0.0, 1.0], [50, 5])
    slope, offset = fit_platt(np.concatenate([np.linspace(-6, -4, 50), np.linspace(4, 6, 5)]), labels)
    assert 0 < slope < 5
    assert 1 / (1 + np.exp(-(4 * slope + offset))) > 0.7
    assert fit_platt(np.concatenate([np.ones(50), -np.ones(5)]), labels)[0] > 0


def test_rates_count() -> None:
    found = rates(np.array([True, False, True, False]), np.array([1.0, 1.0, 0.0, 0.0]))
    assert (found.missed, found.false_positives, found.recall, found.false_positive_rate) == (1, 1, 0.5, 0.5)


def test_training_texts_of_an_example() -> None:
    example = Example("Where was Ann born?", "Ann was born in Zelburg, by the sea.")
    texts = list(training_texts([example], ["Hello there."], np.random.default_rng(0), variations=3))
    assert [text.kind for text in texts] == ["prompt", *["variation"] * 5, "fact"]
    assert texts[0].text == example.prompt
    assert texts[-1].text == "in Zelburg, by the sea."
    assert sum(text.weight for text in texts[:-1]) == pytest.approx(1)
    bare = training_texts([Example("Who is Ann?")], [], np.random.default_rng(0), variations=0)
    assert [text.text for text in bare] == ["Who is Ann?"]


def test_rephrasings_share_a_fold() -> None:
    forget = [Example(f"Question {i} in words {j}?", f"Answer number {i} is this.") for i in range(6) for j in range(3)]
    retain = [Example(f"Other question {i}?", f"Other answer {i}.") for i in range(20)]
    corpus = build_corpus(forget, retain, ["Extra."], np.random.default_rng(0))
    prompts = np.flatnonzero(corpus.kinds == "prompt")
    folds = corpus.folds[prompts]
    assert set(corpus.folds) == set(range(len(set(folds)))) != {0}
    assert all(len(set(folds[3 * i : 3 * i + 3])) == 1 for i in range(6))
    assert (np.diff(folds[18:]) >= 0).all()  # consecutive blocks


def test_a_long_example_is_cut_not_truncated_and_few_examples_train_without_folds(encoder: Encoder) -> None:
    chapter = "The old mill stood still. " * 60 + "Volush Pogruya hid the lantern under the bridge of Zelburg."
    forget, retain = [Example(chapter), Example("Who is Volush Pogruya?")], [Example("Who is Ann Smith?")]
    head, report = train_head(encoder, forget, retain, seed=0, calibration=CalibrationSettings("fpr", level=0.02))
    assert report.folds == 0
    asked = ["Volush Pogruya hid the lantern under the bridge of Zelburg.", "Tell me who Volush Pogruya is."]
    found = scores(encoder, head, [*asked, "What is the capital of France?"])
    assert min(found[:2]) >= head.threshold > found[2]


def test_impossible_training_is_refused(encoder: Encoder) -> None:
    one, two = [Example("Who is Ann?")], [Example("Who is Bob?")]
    for forget, retain in (([], two), (one, [])):
        with pytest.raises(TrainingError, match="at least one example"):
            train_head(encoder, forget, retain, seed=0)
    with pytest.raises(ExampleFileError, match="overlapping"):
        train_head(encoder, one, [*two, *one], seed=0)
    with pytest.raises(TrainingError, match="positive_weight"):
        train_head(encoder, one, two, seed=0, positive_weight=0)
