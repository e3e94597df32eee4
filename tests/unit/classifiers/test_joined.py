"""What heads make of answers: single words as evidence, and prompts and answers read as one text."""

import dataclasses

import numpy as np
import pytest
from invented_composer import FORGET, RETAIN

from classifiers import Encoder, HeadBank
from classifiers.calibration.joined import calibrate_joined, told_evidence
from classifiers.encoders.runtime import log_odds, probability
from classifiers.head import score_texts
from classifiers.memory.learn import EntityMemory, Fact, Subject
from classifiers.memory.recall import MemoryIndex
from classifiers.prompt_classifier import HeadClassifier, flags_answers
from classifiers.training.head import train_head
from sources.examples import Example

WENDELL = EntityMemory(
    subjects=(Subject(words=("wendell", "farquharson"), rarity=(0.6, 1.0)),),
    facts=(Fact(question={"sails": 0.5}, answer={"zelburg": 0.9, "zeppelin": 0.3}),),
)
BRAQUO = EntityMemory(subjects=(Subject(words=("wendell", "braquo"), rarity=(0.6, 1.0)),))


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
    # An answer that says nothing for itself is judged by what it was the answer to, and needs more than a prompt does.
    silent = ["It was so."] * len(forget)
    joined = log_odds(score_texts(encoder, head, [f"{prompt}\nIt was so." for prompt in prompts]))
    least = log_odds(np.array(head.threshold)) + report.joined.offset
    assert flags_answers(classifier, prompts, silent).tolist() == (joined >= least).tolist()


def test_without_answers_to_retain_nothing_is_read_together(encoder: Encoder) -> None:
    head, report = train_head(encoder, FORGET, [Example(one.prompt) for one in RETAIN], seed=0)
    assert (head.settings.joined, report.joined) == (None, None)
    given, found = calibrate_joined(encoder, head, FORGET, RETAIN[:1], told=0.5, seed=0)
    assert given.settings.told == 0.5
    assert found is None or found.retain_pairs == 1
    assert HeadBank([dataclasses.replace(given)]).memories.untold.tolist() == [False]
