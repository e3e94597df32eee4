"""Memories that a text shows too little of are not looked at, and those that it shows enough of as before."""

import dataclasses

import numpy as np
import pytest
from invented_composer import FORGET, NAME, OTHERS, RETAIN

from classifiers import Encoder, Head, HeadBank, HeadSettings, general_prompts
from classifiers.calibration import screening
from classifiers.calibration.screening import calibrate_screen, least_evidence
from classifiers.features import LEXICAL_BUCKETS, extract_features
from classifiers.head import ScreenBand
from classifiers.memory.learn import EntityMemory, Fact, MemoryBuilder, Subject, Vocabulary
from classifiers.memory.recall import MEMORY_FEATURES, MemoryIndex
from text.reading import read, read_all

WENDELL = EntityMemory(
    subjects=(Subject(words=("wendell", "farquharson"), rarity=(0.6, 1.0)),),
    facts=(
        Fact(question={"sails": 0.5}, answer={"zelburg": 0.9, "harbour": 0.6}),
        Fact(question={"harbour": 0.8}, answer={}),
    ),
)
BRAQUO = EntityMemory(subjects=(Subject(words=("wendell", "braquo"), rarity=(0.6, 1.0)),))
ANY = np.array([-np.inf]), np.array([np.inf])


def shown(text: str, *memories: EntityMemory) -> list[float]:
    return MemoryIndex(memories).evidence(read_all([text]))[0].tolist()


def test_evidence_is_the_sum_over_different_words() -> None:
    assert shown("zelburg and zelburg", WENDELL) == pytest.approx([0.81])
    assert shown("a harbour that sails", WENDELL) == pytest.approx([0.64 + 0.25])  # of either fact the heavier
    assert shown("Wendell left", WENDELL, BRAQUO) == pytest.approx([0.6, 0.6])
    assert shown("Wendel left Zelburg", WENDELL, BRAQUO) == pytest.approx([0.6 * 0.8 + 0.81, 0.6 * 0.8])
    assert shown("nothing at all", WENDELL, BRAQUO) == [0, 0]


@pytest.mark.parametrize("text", ["W.e.n.d.e.l.l F-a-r-q-u-h-a-r-s-o-n", "Венделл Фаркухарсон"])
def test_a_name_that_is_not_there_in_words_is_all_the_evidence(text: str) -> None:
    assert shown(text, WENDELL, BRAQUO) == [np.inf, 0]
    assert MemoryIndex([WENDELL, BRAQUO], [5.0, 5.0]).recall(read_all([text])).memories.tolist() == [0]


def test_a_memory_is_looked_at_from_as_much_evidence_as_it_asks_for() -> None:
    reading = read_all(["Wendell left", "Wendell Farquharson left", "Braquo left Zelburg", "zelburg"])
    found = MemoryIndex([WENDELL, BRAQUO], [1.0, 0.9]).recall(reading)
    # A whole name is all the evidence there can be.
    assert list(zip(found.texts.tolist(), found.memories.tolist(), strict=True)) == [(1, 0), (2, 1)]
    every = MemoryIndex([WENDELL, BRAQUO]).recall(reading)
    whole = {
        pair: row
        for *pair, row in zip(every.texts, every.memories, every.features, strict=True)
        for pair in (tuple(pair),)
    }
    for text, memory, row in zip(found.texts, found.memories, found.features, strict=True):
        assert row.tolist() == whole[text, memory].tolist()
    mixed = MemoryIndex([WENDELL, BRAQUO], [0.0, 0.9]).recall(reading)
    assert {int(memory) for memory in mixed.memories[mixed.texts == 3]} == {0}


def head_of(encoder: Encoder, memory: EntityMemory, evidence: float, seed: int) -> Head:
    rng = np.random.default_rng(seed)
    return Head(
        rng.normal(size=encoder.dim).astype(np.float32),
        rng.normal(size=LEXICAL_BUCKETS).astype(np.float32) / 10,
        HeadSettings(
            encoder_digest=encoder.digest, threshold=0.5, bias=-3.0, seed=0, screen=ScreenBand(evidence=evidence)
        ),
        memory,
        np.arange(1, len(MEMORY_FEATURES) + 1).astype(np.float32),
    )


def test_heads_that_look_see_what_they_would_see_alone(encoder: Encoder) -> None:
    memories = [WENDELL, BRAQUO, MemoryBuilder(Vocabulary([e.prompt for e in RETAIN]), RETAIN).build(FORGET)]
    before, after = " ".join(general_prompts()[:40]), " ".join(general_prompts()[40:80])
    reading = read(f"{before} Who is {NAME}? {after} {OTHERS[0]} sailed.")
    everything = HeadBank([head_of(encoder, memory, 0.0, seed) for seed, memory in enumerate(memories)])
    evidence = everything.evidence(reading)
    asked = [50.0, 50.0, float(np.sort(evidence[:, 2])[-4])]
    asking = HeadBank([head_of(encoder, memories[seed], asked[seed], seed) for seed in range(3)])
    some, whole = (bank.screen(reading, np.full(3, -1e5), np.full(3, 1e5)) for bank in (asking, everything))
    assert (some.heads.tolist(), whole.heads.tolist()) == ([2], [0, 1, 2])
    looked = np.isfinite(some.logits[:, 0])
    assert np.array_equal(looked, evidence[:, 2] >= asked[2])
    assert 4 <= looked.sum() < len(looked)
    np.testing.assert_allclose(some.logits[looked, 0], whole.logits[looked, 2], atol=1e-5)
    assert not some.doubtful[~looked].any()
    assert whole.doubtful.all()


def test_nothing_is_looked_at_where_nothing_is_known(encoder: Encoder) -> None:
    bank = HeadBank([head_of(encoder, WENDELL, 1.0, 0)])
    screened = bank.screen(read("Nobody was there. " * 50), *ANY)
    assert screened.heads.tolist() == []
    assert screened.logits.shape == (len(screened.doubtful), 0)
    assert not screened.doubtful.any()


def test_what_is_asked_for_is_what_nearly_every_flagged_text_shows() -> None:
    evidence = np.array([1.0, 2.0, 4.0, np.inf, 0.1, 0.9, 0.2, 0.3])
    flagged = np.array([True, True, True, True, False, False, False, False])
    forget = np.array([True, True, True, True, True, False, False, False])
    assert least_evidence(evidence, flagged, forget) == pytest.approx(0.75)
    # more than the texts that must pass show gains nothing
    assert least_evidence(evidence * [10, 10, 1, 1, 1, 1, 1, 1], flagged, forget) == pytest.approx(0.9)
    assert least_evidence(evidence * [0, 1, 1, 1, 1, 1, 1, 1], flagged, forget) == 0
    assert least_evidence(evidence, np.zeros(8, dtype=bool), forget) == 0
    many = np.concatenate([np.zeros(1), np.full(999, 5.0), np.full(1000, 9.0)])
    assert least_evidence(many, np.arange(2000) < 1000, np.arange(2000) < 1000) == pytest.approx(3.75)  # but a few


def test_the_report_counts_what_too_little_evidence_changes(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screening, "_DOCUMENTS", 5)
    head = dataclasses.replace(head_of(encoder, WENDELL, 0.0, 0), lexical=np.zeros(LEXICAL_BUCKETS, dtype=np.float32))
    passing = [f"Zelburg, {prompt}" for prompt in general_prompts()[300:360]]
    trained = extract_features(encoder, general_prompts()[:40])
    made = {}
    for evidence in (0.0, 0.5, 5.0):
        flagging = dataclasses.replace(head, settings=head.settings.model_copy(update={"bias": 30.0}))
        made[evidence] = calibrate_screen(
            encoder, flagging, trained, ["x"] * 9, np.full(9, 0.99), passing, evidence=evidence, level=None, seed=0
        )[1]
    assert [one.looked_at for one in made.values()] == [made[0.0].decisions, made[0.0].decisions, 0]
    assert [one.changed for one in made.values()] == [0, 0, made[0.0].decisions]
