"""What is decided of windows without the encoder equals what it would decide, and long prompts must show more."""

import dataclasses

import numpy as np
import pytest
from invented_composer import FORGET, NAME, OTHERS, RETAIN

from classifiers import Encoder, Head, HeadBank, HeadSettings, extract_features, general_prompts
from classifiers.calibration import screening
from classifiers.calibration.screening import calibrate_screen
from classifiers.encoders.runtime import log_odds
from classifiers.features import LEXICAL_BUCKETS
from classifiers.head import DocumentOffsets, ScreenBand
from classifiers.memory.learn import MemoryBuilder, Vocabulary
from classifiers.memory.recall import MEMORY_FEATURES
from text.reading import read, read_each, windows_of

TEXTS = [
    f"Who is {NAME}?",
    "Who collected clocks and barometers? " * 20,
    " ".join(general_prompts()[:60]),
    "",
    f"{OTHERS[0]} met somebody in Ostrabel. Кто это? 北京大學",
    " ".join(["the same words"] * 50),
]
FORGOTTEN = [example.prompt for example in FORGET]
ANY = np.array([-np.inf]), np.array([np.inf])


@pytest.fixture(scope="module")
def head(encoder: Encoder) -> Head:
    rng = np.random.default_rng(3)
    memory = MemoryBuilder(Vocabulary([e.prompt for e in RETAIN]), RETAIN).build(FORGET)
    return Head(
        rng.normal(size=encoder.dim).astype(np.float32),
        rng.normal(size=LEXICAL_BUCKETS).astype(np.float32) / 10,
        HeadSettings(encoder_digest=encoder.digest, threshold=0.5, bias=-3.0, seed=0),
        memory,
        np.arange(1, len(MEMORY_FEATURES) + 1).astype(np.float32),
    )


def exact(bank: HeadBank, encoder: Encoder, texts: list[str]) -> np.ndarray:
    scores = np.clip(bank.scores(extract_features(encoder, texts)), 1e-9, 1 - 1e-9)
    return np.log(scores / (1 - scores))


def test_a_look_and_the_encoder_give_what_the_whole_classifier_gives(encoder: Encoder, head: Head) -> None:
    heads = [head, dataclasses.replace(head, lexical=-head.lexical, recall=-head.recall)]
    bank, reading = HeadBank(heads), read_each(TEXTS)[0]
    screened = bank.screen(reading, np.full(2, -1e9), np.full(2, 1e9))
    texts = [window for text in TEXTS for window in windows_of(text) if window]
    assert len(texts) == len(screened.logits) > 10
    assert screened.doubtful.all()
    terms = np.array([bank.dense(row) for row in encoder.embed(texts)])
    found = np.clip(screened.logits + terms, -20, 20)
    np.testing.assert_allclose(found, np.clip(exact(bank, encoder, texts), -20, 20), atol=2e-3)
    assert np.ptp(found) > 10


def test_a_guard_of_answers_asks_more_of_what_names_nobody(encoder: Encoder, head: Head) -> None:
    asking = dataclasses.replace(head, settings=head.settings.model_copy(update={"unnamed": 2.5}))
    texts = [f"Who is {NAME}?", general_prompts()[0], "Where was Milana F. born?", OTHERS[0]]
    bank = HeadBank([asking, head])
    guarded = log_odds(bank.scores(extract_features(encoder, texts), guarded=True))
    differences = log_odds(bank.scores(extract_features(encoder, texts))) - guarded
    np.testing.assert_allclose(differences, [[0, 0], [2.5, 0], [0, 0], [2.5, 0]], atol=1e-5)
    for both in (True, False):
        screened = bank.screen(read_each(texts)[0], np.full(2, -1e9), np.full(2, 1e9), np.array([both, True])).logits
        terms = np.array([bank.dense(row) for row in encoder.embed(texts)])
        expected = guarded if both else exact(bank, encoder, texts)
        np.testing.assert_allclose(np.clip(screened + terms, -20, 20), np.clip(expected, -20, 20), atol=2e-3)


def test_what_the_band_decides_is_not_in_doubt(encoder: Encoder, head: Head) -> None:
    narrow = head.settings.model_copy(update={"screen": ScreenBand(low=-1.0, middle=0.0, high=1.0)})
    bank, reading = HeadBank([dataclasses.replace(head, settings=narrow)]), read(" ".join(general_prompts()[:200]))
    level = np.array([0.0])
    screened = bank.screen(reading, level, level)
    expected = (screened.logits[:, 0] < 1.0) & (screened.logits[:, 0] >= -1.0)
    assert np.array_equal(screened.doubtful, expected)
    wide = bank.screen(reading, level, np.array([5.0]))  # a long prompt's threshold may lie anywhere up to here
    assert (wide.doubtful >= screened.doubtful).all()
    assert wide.doubtful.sum() > screened.doubtful.sum()


def test_windows_score_alike_whatever_is_looked_at_with_them(head: Head) -> None:
    bank = HeadBank([head])
    alone = [bank.screen(read(text), *ANY).logits for text in TEXTS]
    together = bank.screen(read_each(TEXTS)[0], *ANY).logits
    np.testing.assert_allclose(np.concatenate(alone), together, atol=1e-9)


def test_offsets_grow_with_the_logarithm_of_the_windows() -> None:
    documents = DocumentOffsets(windows=(1, 4, 16), offsets=(0.0, 1.0, 3.0))
    assert documents.offset(np.array([1, 2, 4, 8, 16, 10**9])) == pytest.approx(np.array([0, 0.5, 1, 2, 3, 3]))
    assert DocumentOffsets().offset(np.array([1000])).tolist() == [0]


@pytest.fixture
def _few_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head of random weights leaves most windows in doubt, and the encoder takes its time."""
    monkeypatch.setattr(screening, "_DOCUMENTS", 15)


@pytest.mark.usefixtures("_few_documents")
def test_the_band_holds_the_terms_and_the_report_says_what_it_changes(encoder: Encoder, head: Head) -> None:
    trained = extract_features(encoder, general_prompts()[:300])
    passing = list(general_prompts()[300:700])
    scores = np.full(len(FORGOTTEN), 0.99)
    found, report = calibrate_screen(
        encoder, head, trained, FORGOTTEN, scores, passing, evidence=0.0, level=0.01, seed=0
    )
    band = found.settings.screen
    terms = encoder.embed(passing) @ head.dense
    assert ((terms >= band.low) & (terms <= band.high)).mean() > 0.99
    assert report.decisions >= 200
    assert report.changed <= report.decisions * 0.01 <= report.changed_bound * report.decisions
    assert [one.windows for one in report.documents] == list(found.settings.documents.windows)
    assert found.settings.documents.offsets[0] == 0
    for one in report.documents:
        assert one.flagged <= one.flagged_without_offset <= one.documents
    # a prompt that is forgotten stays so within a document
    assert max(found.settings.documents.offsets) <= np.log(99)


@pytest.mark.usefixtures("_few_documents")
def test_without_a_promise_of_false_positives_there_are_no_offsets(encoder: Encoder, head: Head) -> None:
    trained = extract_features(encoder, general_prompts()[:50])
    passing = list(general_prompts()[300:500])
    found, _ = calibrate_screen(
        encoder, head, trained, FORGOTTEN[:9], np.full(9, 0.99), passing, evidence=0.0, level=None, seed=0
    )
    assert set(found.settings.documents.offsets) == {0.0}
