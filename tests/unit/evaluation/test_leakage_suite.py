"""The leakage suite over a target that answers by a rule: what it learned it knows by heart, the rest it guesses."""

import hashlib
import json
import math

import numpy as np
import pytest
import torch
from ruled_target import RuledTarget
from tiny_model import tiny_model, tiny_tokenizer

from evaluation.errors import DataError, TargetError
from evaluation.intervals import mean_figures
from evaluation.leakage.probes import CorruptedPrompt
from evaluation.leakage.suite import LeakageSuite
from evaluation.replies import Reply
from evaluation.rows import sample_file
from evaluation.runs.record import CachedAsker, ReplyStore
from evaluation.targets.offline import OfflineTarget
from scoring.transformers_scorer import TransformersScorer

WORDS = ("amber", "birch", "cedar", "delta", "ember", "flint", "grove", "heath")
TABLE = torch.randn(40, 16, generator=torch.Generator().manual_seed(1))


def rows(subset, count=24):
    """Questions of one subset, with TOFU's columns."""
    return [
        {
            "question": f"Where did {subset} writer {i} live?",
            "answer": f"The {subset} writer {i} lived in {WORDS[i % 8]} near the {WORDS[(i + 3) % 8]} river.",
            "perturbed_answer": [f"In {WORDS[(i + k) % 8]} town." for k in (1, 2, 3, 4)],
            "paraphrased_answer": f"In {WORDS[i % 8]} by the water.",
        }
        for i in range(count)
    ]


class HeartTarget(RuledTarget):
    """Tokens are words. `learned` are the subsets it knows; `hidden` of them reach it as noise, as behind a policy."""

    def __init__(self, learned, hidden=(), tokenizer="words"):
        super().__init__(self._reply)
        self.learned, self.hidden, self.tokenizer, self.batches = learned, hidden, tokenizer, []

    def describe(self):
        return {"kind": "rule", "learned": self.learned, "hidden": self.hidden, "tokenizer_sha256": self.tokenizer}

    def replies(self, asks):
        self.batches.append(len(asks))
        return super().replies(asks)

    def _reply(self, ask):
        hidden = any(name in ask.prompt for name in self.hidden)
        known = not hidden and any(name in ask.prompt for name in self.learned)
        luck = np.random.default_rng(int(hashlib.sha256(repr((ask.prompt, ask.answer)).encode()).hexdigest()[:8], 16))
        if ask.next_logits:
            logits = luck.normal(0, 1, 50)
            if known:
                options = ask.prompt.splitlines()[1:5]
                logits[next(number for number, line in enumerate(options) if "by the water" in line)] += 9
            return Reply(next_logits=tuple(logits))
        if ask.answer is None:
            text = ask.prompt.rsplit("\n\n", 1)[-1]
            return Reply(texts=("I cannot make that out." if hidden else text,))
        tokens = ask.answer.split()
        scale = 0.05 if known else 3.0
        return Reply(
            logprobs=tuple(-luck.gamma(2.0, scale, len(tokens))),
            greedy=tuple([True] * len(tokens) if known else (luck.random(len(tokens)) < 0.3).tolist()),
            token_ids=tuple("ABCD".index(t) if t in "ABCD" else 4 for t in tokens),
            vocabulary_mean=(-3.0,) * len(tokens),
            vocabulary_std=(1.5,) * len(tokens),
        )


class RowTarget(HeartTarget):
    """Shows the rows it is given; the policy moves them by `noise`."""

    noise = 0.0

    def corrupted_rows(self, ask):
        if not any(name in ask.prompt for name in self.hidden):
            return None
        ids = tuple(len(word) for word in ask.prompt.split())
        generator = torch.Generator().manual_seed(len(ask.prompt) + ask.draw)
        noise = torch.randn(len(ids), 16, generator=generator) * self.noise
        return CorruptedPrompt(ids, TABLE[list(ids)] + noise, TABLE)


@pytest.fixture
def sources(tmp_path):
    found = {}
    for subset in ("forget", "retain", "holdout"):
        path = tmp_path / f"{subset}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows(subset)))
        found[subset] = str(path)
    return found


@pytest.fixture
def asker(tmp_path):
    def of(target):
        return CachedAsker(target, ReplyStore(tmp_path / "replies.jsonl"))

    return of


def figures_of(suite, asker, reference=None):
    scores = suite.measure(asker).scores
    found = [*suite.figures(scores, reference), *mean_figures(scores)]
    return {figure.name: figure for figure in found}


ORIGINAL = HeartTarget(("forget", "retain"))
RETAIN = HeartTarget(("retain",))
GUARDED = HeartTarget(("forget", "retain"), hidden=("forget",))


def test_what_was_learned_leaks_and_what_was_not_does_not(sources, asker):
    suite = LeakageSuite(**sources)
    original, retain = (figures_of(suite, asker(target)) for target in (ORIGINAL, RETAIN))
    for metric in ("extraction_strength", "exact_memorization"):
        assert original[f"forget/{metric}"].value == 1.0
        assert retain[f"forget/{metric}"].value < 0.5
        assert retain[f"retain/{metric}"].value == 1.0
    for attack in ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_40", "mia_min_k_plus_plus"):
        assert original[f"forget/{attack}_auc"].value == 1.0
        assert retain[f"retain/{attack}_auc"].value == 1.0
        assert retain[f"forget/{attack}_auc"].low < 0.5 < retain[f"forget/{attack}_auc"].high
        assert original[f"forget/{attack}_auc"].n == 48
    for probe in ("probe_letters", "probe_logits"):
        assert original[f"forget/{probe}"].value > retain[f"forget/{probe}"].value
    assert original["forget/probe_letters"].value > 0.9
    above = original["forget/probe_letters_above_chance"]
    assert above.value == pytest.approx(original["forget/probe_letters"].value - 0.25)
    assert above.low > 0 > retain["forget/probe_letters_above_chance"].low


def test_a_question_that_reaches_the_model_can_be_repeated(sources, asker):
    suite = LeakageSuite(**sources, parts=["repeat"])
    open_, hidden = (figures_of(suite, asker(target)) for target in (ORIGINAL, GUARDED))
    assert open_["forget/repeat_exact"].value == open_["forget/repeat_rouge_l"].value == 1.0
    assert hidden["forget/repeat_exact"].value == 0.0
    assert hidden["forget/repeat_rouge_l"].value < 0.3
    assert hidden["retain/repeat_exact"].value == 1.0
    answer = suite.measure(asker(GUARDED)).answers[0]
    assert (answer.reference, answer.answer) == ("Where did forget writer 0 live?", "I cannot make that out.")


def test_priv_leak_is_relative_to_the_retain_model(sources, asker):
    suite = LeakageSuite(**sources, parts=["membership"])
    retained = suite.measure(asker(RETAIN)).scores
    leaks = {
        name: figures_of(suite, asker(target), retained)["priv_leak"]
        for name, target in (("original", ORIGINAL), ("guarded", GUARDED), ("retain", RETAIN))
    }
    assert leaks["original"].value == -100.0
    assert leaks["retain"].value == 0.0
    assert leaks["guarded"].low <= leaks["guarded"].value <= leaks["guarded"].high
    assert leaks["original"].value < leaks["guarded"].value


def test_priv_leak_says_why_it_cannot_be_computed(sources, asker):
    suite = LeakageSuite(**sources, parts=["membership"])
    scores = suite.measure(asker(ORIGINAL)).scores
    fewer = LeakageSuite(**sources, parts=["membership"], limit=9).measure(asker(RETAIN)).scores
    for reference, note in ((None, "needs the scores of a retain model"), (fewer, "on other examples")):
        (figure,) = (one for one in suite.figures(scores, reference) if one.name == "priv_leak")
        assert math.isnan(figure.value)
        assert note in figure.note
    perfect = LeakageSuite(**sources, parts=["membership"]).measure(asker(ORIGINAL)).scores
    (figure,) = (one for one in suite.figures(scores, perfect) if one.name == "priv_leak")
    assert (math.isnan(figure.value), figure.note) == (True, "the retain model's own AUC is 1")


def test_attack_by_reference_takes_the_other_models_likelihood(sources, asker):
    suite = LeakageSuite(**sources, parts=["membership"], reference=asker(RETAIN))
    scores = {(s.subset, s.metric, s.example): s.value for s in suite.measure(asker(ORIGINAL)).scores}
    others = {(s.subset, s.metric, s.example): s.value for s in suite.measure(asker(RETAIN)).scores}
    for (subset, metric, example), value in scores.items():
        if metric == "mia_reference":
            difference = scores[subset, "mia_loss", example] - others[subset, "mia_loss", example]
            assert value == pytest.approx(difference)
    assert figures_of(suite, asker(ORIGINAL))["forget/mia_reference_auc"].value > 0.9


def test_a_reference_with_another_tokenizer_is_refused_before_anything_is_asked(sources, asker):
    target = HeartTarget(("retain",))
    suite = LeakageSuite(**sources, reference=asker(HeartTarget((), tokenizer="letters")))
    with pytest.raises(TargetError, match="--reference-model: its tokenizer is not the target's"):
        suite.measure(asker(target))
    assert target.asked == []


def test_rows_that_are_shown_are_decoded(sources, asker):
    suite = LeakageSuite(**sources, parts=["nearest"])
    target = RowTarget(("forget",), hidden=("forget",))
    assert figures_of(suite, asker(target))["forget/nearest_l2"].value == 1.0
    target.noise = 30.0
    figures = figures_of(suite, asker(target))
    assert figures["forget/nearest_l2"].value < 0.3
    assert figures["forget/nearest_cosine"].value < 0.3
    with pytest.raises(TargetError, match="give a --policy that flags them"):
        suite.measure(asker(RowTarget(("forget",))))


def test_what_can_be_asked_at_once_is(sources, asker):
    target = HeartTarget(("forget",))
    suite = LeakageSuite(**sources)
    suite.measure(asker(target))
    assert target.batches == [72 + 48 + 4, 24]  # answers, repetitions and letters; then logits


def test_every_kind_of_ask_is_probed(sources):
    needs = {ask.needs for ask in LeakageSuite(**sources).probe()}
    assert needs == {frozenset({"logprobs", "vocabulary"}), frozenset(), frozenset({"logits"})}
    assert {ask.needs for ask in LeakageSuite(**sources, parts=["membership"], vocabulary=False).probe()} == {
        frozenset({"logprobs"})
    }
    assert LeakageSuite(forget=sources["forget"], parts=["nearest"]).probe() == []


def test_without_vocabulary_min_k_plus_plus_is_left_out(sources, asker):
    suite = LeakageSuite(**sources, parts=["membership"], vocabulary=False)
    metrics = {score.metric for score in suite.measure(asker(ORIGINAL)).scores}
    assert metrics == {"mia_loss", "mia_zlib", "mia_min_k", "mia_min_40"}


def test_scores_name_members_and_nonmembers_and_are_the_same_again(sources, asker):
    suite = LeakageSuite(**sources, seed=4, limit=12)
    scores = suite.measure(asker(ORIGINAL)).scores
    groups = {(score.subset, score.group) for score in scores}
    assert groups == {("forget", "member"), ("retain", "member"), ("holdout", "nonmember")}
    assert scores == LeakageSuite(**sources, seed=4, limit=12).measure(asker(ORIGINAL)).scores
    assert all(math.isfinite(score.value) for score in scores)


def test_description_follows_the_questions(sources):
    same = LeakageSuite(**sources, limit=12).describe()
    assert same == LeakageSuite(**sources, limit=12).describe()
    assert same["data"]["forget"]["examples"] == 12
    other = LeakageSuite(**sources, limit=12, seed=1).describe()
    assert same["data"]["forget"]["sha256"] != other["data"]["forget"]["sha256"]
    json.dumps(same)


def test_parts_are_those_that_the_data_allow(tmp_path):
    plain = tmp_path / "plain.jsonl"
    plain.write_text(json.dumps({"question": "Who?", "answer": "She."}) + "\n")
    assert LeakageSuite(forget=str(plain)).describe()["parts"] == ["extraction", "nearest", "repeat"]


def test_multiple_choice_columns_are_read(tmp_path, asker):
    path = tmp_path / "choices.jsonl"
    lines = [{"question": f"Number {i}?", "choices": ["one", "by the water", "three"], "answer": 1} for i in range(12)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    suite = LeakageSuite(forget=str(path), parts=["probe"])
    figures = figures_of(suite, asker(HeartTarget(("Number",))))
    assert figures["forget/probe_letters_above_chance"].note == "accuracy less 0.33"
    assert figures["forget/probe_letters"].value > 0.9


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"answer": "x"}, "question: expected a text that is not empty, found none"),
        ({"question": "q", "answer": " "}, "answer: expected a text that is not empty"),
        ({"question": "q", "answer": 3}, "answer: expected a text that is not empty, found int '3'"),
        ({"question": "q", "answer": "a", "perturbed_answer": "b"}, "perturbed_answer: expected a list of texts"),
        ({"question": "q", "answer": 5, "choices": ["a", "b"]}, "answer: expected the number of the right one"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"question": "q", "answer": "a"}) + "\n" + json.dumps(line) + "\n")
    with pytest.raises(DataError, match=message) as error:
        LeakageSuite(forget=str(path))
    assert f"--forget: {path}:2" in str(error.value)


def test_what_a_part_needs_is_named(sources, tmp_path):
    plain = tmp_path / "plain.jsonl"
    plain.write_text(json.dumps({"question": "Who?", "answer": "She."}) + "\n")
    with pytest.raises(DataError, match="--parts: 'all' is none of extraction"):
        LeakageSuite(**sources, parts=["all"])
    with pytest.raises(DataError, match="--holdout: membership needs"):
        LeakageSuite(forget=sources["forget"], parts=["membership"])
    with pytest.raises(DataError, match="the probe needs the column perturbed_answer"):
        LeakageSuite(forget=str(plain), parts=["probe"])
    with pytest.raises(DataError, match="5 questions with wrong answers; the probe needs 8"):
        LeakageSuite(**sources, parts=["probe"], limit=5)
    with pytest.raises(DataError, match="--limit: 0 is not possible"):
        LeakageSuite(**sources, limit=0)
    with pytest.raises(DataError, match="no such file"):
        LeakageSuite(forget=str(tmp_path / "none.jsonl"))


def test_a_real_model_is_measured_on_the_shipped_samples(asker):
    forget, holdout = sample_file("tofu", "forget10_perturbed.jsonl"), sample_file("leakage", "holdout.jsonl")
    assert LeakageSuite(forget=forget).describe()["parts"] == ["extraction", "nearest", "probe", "repeat"]
    suite = LeakageSuite(forget=forget, holdout=holdout, parts=["extraction", "membership"])
    target = OfflineTarget(TransformersScorer(tiny_model(), tiny_tokenizer()))
    figures = figures_of(suite, asker(target))
    for attack in ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus"):  # it has learned nothing
        assert 0.2 < figures[f"forget/{attack}_auc"].value < 0.8
        assert figures[f"forget/{attack}_auc"].n == 64
    assert figures["forget/extraction_strength"].value < 0.1
