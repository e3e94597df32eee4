"""What heads make of answers: single words as evidence, and prompts and answers read as one text."""

import dataclasses

import numpy as np
import pytest
from invented_composer import FORGET, NAME, RETAIN

from classifiers import Encoder, Head, HeadBank, HeadSettings
from classifiers.calibration.joined import calibrate_joined, told_evidence
from classifiers.encoders.runtime import log_odds, probability
from classifiers.features import LEXICAL_BUCKETS
from classifiers.head import score_texts
from classifiers.memory.learn import EntityMemory, Fact, MemoryBuilder, Subject, Vocabulary
from classifiers.memory.recall import MEMORY_FEATURES, MemoryIndex
from classifiers.prompt_classifier import HeadClassifier, flags_answers
from classifiers.training.head import train_head
from sources.examples import Example

WENDELL = EntityMemory(
    subjects=(Subject(words=("wendell", "farquharson"), rarity=(0.6, 1.0)),),
    facts=(Fact(question={"sails": 0.5}, answer={"zelburg": 0.9, "zeppelin": 0.3}),),
)
BRAQUO = EntityMemory(subjects=(Subject(words=("wendell", "braquo"), rarity=(0.6, 1.0)),))


NAMED = FORGET[:-1]  # the last describes her, and is answered with her name


@pytest.fixture(scope="module")
def plain_head(encoder: Encoder) -> Head:
    """Flags whole names and facts, and nothing else."""
    memory = MemoryBuilder(Vocabulary([one.prompt for one in RETAIN]), RETAIN).build(FORGET)
    weights = np.zeros(len(MEMORY_FEATURES), dtype=np.float32)
    weights[[MEMORY_FEATURES.index(name) for name in ("subject", "answer")]] = 6.0
    settings = HeadSettings(encoder_digest=encoder.digest, threshold=0.5, bias=-3.0, seed=0)
    dense, lexical = np.zeros(encoder.dim, dtype=np.float32), np.zeros(LEXICAL_BUCKETS, dtype=np.float32)
    return Head(dense, lexical, settings, memory, weights)


def told(shares: tuple[np.ndarray, np.ndarray]) -> dict[int, float]:
    return dict(zip(shares[0].tolist(), shares[1].round(6).tolist(), strict=True))


def test_a_word_is_a_share_of_what_each_memory_is_told_by() -> None:
    index = MemoryIndex([WENDELL, BRAQUO], told=[0.9, 0.5])
    assert told(index.shares("zelburg")) == {0: 0.9}
    assert told(index.shares("wendell")) == {0: round(0.6 / 0.9, 6), 1: 1.2}
    assert told(index.shares("nothing")) == {}
    # As much as a text of that word alone shows.
    from text.reading import read_all

    shown = MemoryIndex([WENDELL, BRAQUO]).evidence(read_all(["Wendel"]))[0] / [0.9, 0.5]
    assert told(index.shares("wendel")) == pytest.approx(dict(enumerate(shown)), abs=1e-5)


def test_a_word_may_begin_one_that_says_more() -> None:
    index = MemoryIndex([WENDELL, BRAQUO], told=[0.9, 0.5])
    assert list(index.begun_words("ze")) == ["zelburg", "zeppelin"]
    assert told(index.begun_shares("ze")) == {0: 0.9}
    assert told(index.begun_shares("zep")) == {0: 0.1}
    assert told(index.begun_shares("zelburg")) == {}  # longer words only
    assert told(index.begun_shares("br")) == {1: 2.0}


def test_a_memory_that_is_told_by_any_text_says_nothing_of_words() -> None:
    index = MemoryIndex([WENDELL, BRAQUO], told=[0.0, 0.5])
    assert told(index.shares("wendell")) == {1: 1.2}
    assert index.untold.tolist() == [True, False]
    assert MemoryIndex([WENDELL]).untold.tolist() == [True]


def test_what_tells_is_what_nearly_all_flagged_texts_show() -> None:
    known = np.array([0.0, 0.0, 5.0, *np.linspace(1, 2, 200), np.inf])
    flagged = np.ones(len(known), dtype=bool)
    assert told_evidence(known, flagged) == pytest.approx(0.75, rel=0.02)
    flagged[2:] = False
    assert told_evidence(known, flagged) == 0.0  # nothing that is flagged is told by the memory
    assert told_evidence(np.array([0.0] * 30 + [1.0] * 70), np.ones(100, dtype=bool)) == 0.0
    assert told_evidence(np.empty(0), np.empty(0, dtype=bool)) == 0.0


def test_log_odds_are_the_inverse_of_probabilities() -> None:
    values = np.array([-5.0, 0.0, 3.0])
    assert log_odds(probability(values)) == pytest.approx(values)
    assert np.isfinite(log_odds(np.array([0.0, 1.0]))).all()


def test_pairs_of_the_retain_set_pass_and_those_of_the_forget_set_do_not(encoder: Encoder) -> None:
    forget = [Example(one.prompt, f"It is said of {one.prompt}") for one in FORGET]
    retain = [Example(one.prompt, "Nobody knows that any more.") for one in RETAIN]
    head, report = train_head(encoder, forget, retain, seed=0)
    assert report.joined is not None
    assert head.settings.joined == report.joined.offset >= 1.0
    assert (report.joined.retain_pairs, report.joined.retain_flagged) == (len(retain), 0)
    assert report.joined.forget_flagged > 0.9 * report.joined.forget_pairs
    assert head.settings.told == report.joined.told
    classifier = HeadClassifier(head, encoder, head.threshold, "0" * 64)
    prompts, answers = [one.prompt for one in forget], [str(one.answer) for one in forget]
    assert flags_answers(classifier, prompts, answers).mean() > 0.9
    assert not flags_answers(classifier, [one.prompt for one in retain], ["Nobody knows."] * len(retain)).any()
    assert head.settings.unnamed == report.joined.unnamed > 0
    # An answer that says nothing for itself is judged by what it was the answer to, and needs more than a prompt does.
    silent = ["It was so."] * len(forget)
    pairs = [f"{prompt}\nIt was so." for prompt in prompts]
    joined = log_odds(score_texts(encoder, head, pairs, guarded=True))
    least = log_odds(np.array(head.threshold)) + report.joined.offset
    assert flags_answers(classifier, prompts, silent).tolist() == (joined >= least).tolist()


def test_without_answers_to_retain_nothing_is_read_together(encoder: Encoder) -> None:
    head, report = train_head(encoder, FORGET, [Example(one.prompt) for one in RETAIN], seed=0)
    assert (head.settings.joined, report.joined) == (None, None)
    given, found = calibrate_joined(encoder, head, FORGET, RETAIN[:1], told=0.5, seed=0)
    assert given.settings.told == 0.5
    assert found is None or found.retain_pairs == 1
    assert HeadBank([dataclasses.replace(given)]).memories.untold.tolist() == [False]


@pytest.mark.parametrize(
    ("forget", "asks_more"),
    [
        (NAMED, True),
        (FORGET, False),  # it asks for whom it describes: so must be flagged who does
        ((*NAMED, *(Example(f"What year is {number}?", "1958") for number in range(3))), True),
        # A topic has no name that most of its examples tell.
        ((*FORGET[:4], *(Example(f"How is chlorine made, step {number}?", "So.") for number in range(9))), False),
    ],
)
def test_what_names_nobody_has_to_show_more_where_the_examples_name_somebody(
    encoder: Encoder, plain_head: Head, forget: tuple[Example, ...], asks_more: bool
) -> None:
    retain = [Example(one.prompt, "Nobody knows that any more.") for one in RETAIN]
    head, _ = calibrate_joined(encoder, plain_head, forget, retain, told=0.5, seed=0)
    assert (head.settings.unnamed > 0) == asks_more


def test_what_answers_of_the_retain_set_show_passes(encoder: Encoder, plain_head: Head) -> None:
    retain = [Example(one.prompt, "Nobody knows that any more.") for one in RETAIN]
    found = [
        calibrate_joined(encoder, plain_head, FORGET, pairs, told=0.5, seed=0)
        for pairs in (retain, [Example(RETAIN[0].prompt, "In Ostrabel, on the river Lunde."), *retain[1:]])
    ]
    (quiet, quiet_report), (telling, telling_report) = found
    assert quiet_report is not None
    assert telling_report is not None
    assert (quiet.settings.answered, quiet_report.answered) == (0, 0)
    assert telling.settings.answered == telling_report.answered > 1
    assert (quiet_report.retain_flagged, telling_report.retain_flagged) == (0, 0)
    # One that names her is flagged: no threshold that keeps what must be flagged would have it pass.
    named = [Example(RETAIN[0].prompt, f"Not as {NAME} did."), *retain[1:]]
    head, report = calibrate_joined(encoder, plain_head, FORGET, named, told=0.5, seed=0)
    assert head.settings == quiet.settings
    assert report is not None
    assert report.retain_flagged == 1
