"""The copyright suite with targets that recite, forget or babble by rule, on the passages that ship."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ruled_target
import sacrebleu
import torch
from rouge_score.rouge_scorer import RougeScorer
from ruled_target import PlainAsker, RuledTarget, says, write_rows
from transformers import BertConfig, BertModel, BertTokenizer

import evaluation
from evaluation.copyright.metrics import BertScore
from evaluation.copyright.passages import Passage, Split, load_passages
from evaluation.copyright.suite import CopyrightSuite
from evaluation.errors import DataError, TargetError
from evaluation.intervals import mean_figures
from evaluation.replies import Ask, Reply
from evaluation.suite import Figure, Score

SAMPLES = Path(evaluation.__file__).parent / "copyright" / "samples"
NEWS, STORY = str(SAMPLES / "news.jsonl"), str(SAMPLES / "story.jsonl")
BABBLE = "the cat sat on the mat and " * 30


def likelihood(ask: Ask) -> Reply:
    """Every word of an answer is as likely as it is short: P = 1 / (1 + letters)."""
    return Reply(logprobs=tuple(-math.log1p(len(word)) for word in (ask.answer or "").split()))


def silent(_: Ask) -> Reply:
    raise TargetError("rule: returns no log-probabilities")


def scorer() -> PlainAsker:
    return PlainAsker(RuledTarget(likelihood))


def recite(prompt: str) -> str:
    """What follows the prompt in any of the passages that ship."""
    for source in (NEWS, STORY):
        for line in Path(source).read_text().splitlines():
            _, found, rest = json.loads(line)["text"].partition(prompt.split("\n\n")[-1])
            if found:
                return rest
    raise AssertionError("not a prompt of the passages")


def recite_a_little(prompt: str) -> str:
    return " ".join(recite(prompt).split()[:12]) + " " + BABBLE


def means(scores: Sequence[Score]) -> dict[str, float]:
    return {name.removeprefix("forget/"): value for name, value in ruled_target.means(scores).items()}


def named(figures: Sequence[Figure], name: str) -> Figure:
    return next(figure for figure in figures if figure.name == name)


def draws_of(scores: Sequence[Score], draw: int) -> list[Score]:
    return [replace(score, draw=draw) for score in scores]


@pytest.mark.parametrize("style", ["text", "chat"])
@pytest.mark.parametrize("source", [NEWS, STORY])
def test_who_recites_is_above_who_recites_a_little_is_above_who_babbles(source: str, style) -> None:
    suite = CopyrightSuite(source, style=style)
    rules = (recite, recite_a_little, lambda _: BABBLE)

    full, little, none = (means(suite.measure(says(rule)).scores) for rule in rules)

    similarities = ["rouge_1_f1", "rouge_2_f1", "rouge_l_f1", "sacrebleu", "longest_verbatim_run", "containment_5gram"]
    similarities += [name for name in full if name.startswith("meteor")]
    assert all(full[name] > little[name] > none[name] for name in similarities)
    assert (full["exact_match"], little["exact_match"], none["exact_match"]) == (1.0, 0.0, 0.0)
    assert full["rouge_l_f1"] == full["containment_5gram"] == 1.0
    assert little["longest_verbatim_run"] >= 12
    assert full["unique_token_ratio"] > none["unique_token_ratio"]
    assert full["repetition"] < none["repetition"]


def test_everything_is_asked_at_once_and_what_was_probed_is_what_is_asked() -> None:
    suite = CopyrightSuite(NEWS, split=Split(prompt_words=20, answer_words=30))
    asker = says(recite)

    outcome = suite.measure(asker)

    assert asker.calls == 1
    assert list(suite.probe()) == asker.target.asked[:1]
    assert {len(ask.prompt.split()) for ask in asker.target.asked} == {20}
    assert {(ask.style, ask.max_new_tokens, ask.answer) for ask in asker.target.asked} == {("text", 60, None)}
    first = outcome.answers[0]
    assert first.question.startswith("The ferry that links Harlow Bay")
    assert first.answer.startswith(first.reference)
    assert len(first.reference.split()) == 30
    assert {score.group for score in outcome.scores} >= {"transport", "nature"}


def test_a_chat_is_instructed() -> None:
    suite = CopyrightSuite(NEWS, style="chat", limit=1)

    (ask,) = suite.probe()

    assert ask.style == "chat"
    assert ask.prompt.startswith("Here is the beginning of a text.")
    assert ask.prompt.endswith(load_passages(NEWS, Split(), limit=1)[0][0].prompt)


def test_scores_are_those_of_the_libraries_over_as_many_words_as_the_passage_has() -> None:
    suite = CopyrightSuite(NEWS, limit=3, seed=5, split=Split(answer_words=25))
    passages = load_passages(NEWS, Split(answer_words=25), limit=3, seed=5)[0]

    outcome = suite.measure(says(recite_a_little))

    found = {(score.example, score.metric): score.value for score in outcome.scores}
    for passage in passages:
        cut = " ".join(recite_a_little(passage.prompt).split()[:25])
        rouge = RougeScorer(["rougeL"]).score(passage.reference, cut)["rougeL"].fmeasure
        assert found[passage.example, "rouge_l_f1"] == rouge
        bleu = sacrebleu.sentence_bleu(cut, [passage.reference]).score / 100
        assert found[passage.example, "sacrebleu"] == pytest.approx(bleu, abs=1e-12)


def test_an_answer_that_goes_on_copying_is_an_exact_match() -> None:
    suite = CopyrightSuite(NEWS, split=Split(answer_words=10))

    found = means(suite.measure(says(recite)).scores)

    assert found["exact_match"] == 1.0
    assert found["longest_verbatim_run"] > 80  # of all of the passage's rest


def test_an_empty_answer_scores_nothing_and_breaks_nothing() -> None:
    suite = CopyrightSuite(NEWS, reference=scorer())

    outcome = suite.measure(says(lambda _: ""))

    assert set(means(outcome.scores).values()) == {0.0}
    pooled = named(suite.figures(outcome.scores, None), "forget/perplexity")
    assert math.isnan(pooled.value)
    assert pooled.note == "no answer has a token"


def test_the_gap_is_the_mean_distance_of_the_means_from_the_retain_models() -> None:
    suite = CopyrightSuite(NEWS)
    ours = [
        *draws_of(suite.measure(says(recite_a_little)).scores, 0),
        *draws_of(suite.measure(says(lambda _: BABBLE)).scores, 1),
    ]
    retain = suite.measure(says(lambda prompt: " ".join(prompt.split()[::-1]))).scores

    gap = named(suite.figures(ours, retain), "average_similarity_gap")

    metrics = [m for m in ("meteor", "meteor_no_synonyms", "rouge_l_f1", "sacrebleu") if m in means(retain)]
    assert gap.value == pytest.approx(np.mean([abs(means(ours)[m] - means(retain)[m]) for m in metrics]), abs=1e-12)
    assert gap.note == f"mean over {', '.join(metrics)}"
    assert gap.n == 8
    assert gap.low is not None
    assert gap.high is not None
    assert gap.low < gap.value < gap.high


def test_the_gaps_interval_resamples_the_same_passages_for_all_metrics() -> None:
    """Two metrics that are each other's opposite: their gaps move together, and the interval is that of one of them."""
    values = np.random.default_rng(1).uniform(0.2, 0.8, size=40)
    suite = CopyrightSuite(NEWS)
    ours = [Score("forget", "rouge_l_f1", str(i), value) for i, value in enumerate(values)]
    both = ours + [Score("forget", "sacrebleu", str(i), 1 - value) for i, value in enumerate(values)]
    retain = [Score("forget", m, str(i), 0.0 if m == "rouge_l_f1" else 1.0) for m in ("rouge_l_f1", "sacrebleu")
              for i in range(40)]  # fmt: skip

    one, two = (named(suite.figures(mine, retain), "average_similarity_gap") for mine in (ours, both))

    (plain,) = mean_figures(ours)
    assert (one.value, one.low, one.high) == pytest.approx((plain.value, plain.low, plain.high), abs=1e-12)
    assert (two.value, two.low, two.high) == pytest.approx((plain.value, plain.low, plain.high), abs=1e-12)


def test_a_retain_model_has_no_gap_to_itself() -> None:
    suite = CopyrightSuite(STORY)
    scores = suite.measure(says(recite_a_little)).scores

    gap = named(suite.figures(scores, scores[::-1]), "average_similarity_gap")

    assert (gap.value, gap.low, gap.high) == (0.0, 0.0, 0.0)


def test_a_gap_that_cannot_be_had_says_why() -> None:
    suite = CopyrightSuite(NEWS)
    scores = suite.measure(says(recite)).scores
    others = [replace(score, example=f"other {score.example}") for score in scores]
    foreign = [replace(score, metric="probability") for score in scores]

    gaps = [named(suite.figures(scores, retain), "average_similarity_gap") for retain in (None, others, foreign)]

    assert all(math.isnan(gap.value) and gap.low is None and gap.n == 8 for gap in gaps)
    assert [gap.note for gap in gaps] == [
        "needs a retain model's run of the same passages",
        "the retain model's run is of other passages; run it on the same",
        "the retain model's run has none of the similarity metrics",
    ]


def test_perplexity_is_over_the_tokens_of_the_answers_under_the_reference_model() -> None:
    reference = scorer()
    suite = CopyrightSuite(NEWS, reference=reference)
    answers = {passage.prompt: "a bb " * number for number, passage in enumerate(load_passages(NEWS, Split())[0])}
    asker = says(lambda prompt: answers[prompt])

    scores = suite.measure(asker).scores
    figures = suite.figures(scores, None)

    # P is 1/2 for every "a" and 1/3 for every "bb"; the first answer is empty.
    pooled, each = named(figures, "forget/perplexity"), named(figures, "forget/perplexity_per_passage")
    assert pooled.value == pytest.approx(math.sqrt(6))
    assert pooled.note == f"over {2 * sum(range(8))} tokens of all answers"
    assert (each.value, each.n) == (pytest.approx(math.sqrt(6)), 7)
    assert each.note == "1 of 8 answers have no token and are left out"
    assert len(reference.target.asked) == 7
    assert all(ask.style == "text" and ask.prompt in answers for ask in reference.target.asked)


def test_pooled_perplexity_counts_a_long_answer_for_more() -> None:
    suite = CopyrightSuite(NEWS, limit=2, reference=scorer())
    short, long = "bbbbbbb", "a " * 30
    texts = iter([short, long])

    scores = suite.measure(says(lambda _: next(texts))).scores
    figures = suite.figures([*scores, *draws_of(scores, 1)], None)

    assert named(figures, "forget/perplexity").value == pytest.approx(math.exp((math.log(8) + 30 * math.log(2)) / 31))
    per_passage = named(figures, "forget/perplexity_per_passage")
    assert (per_passage.value, per_passage.low, per_passage.high) == pytest.approx((5.0, 2.0, 8.0))


def test_an_answer_is_scored_with_the_space_that_decoding_lost() -> None:
    reference = scorer()
    suite = CopyrightSuite(NEWS, limit=3, reference=reference)
    texts = iter(["word", " word", ", word"])

    suite.measure(says(lambda _: next(texts)))

    assert [ask.answer for ask in reference.target.asked] == [" word", " word", ", word"]


def test_a_reference_without_logprobs_is_refused_before_anything_is_asked() -> None:
    with pytest.raises(TargetError, match="no log-probabilities"):
        CopyrightSuite(NEWS, reference=PlainAsker(RuledTarget(silent)))


def test_bert_score_is_measured_with_the_given_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "mat", "and", "a", "of", "to"]
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=64, **sizes)).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(vocab=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    suite = CopyrightSuite(NEWS, bert_model=str(tmp_path), bert_layers=2, split=Split(answer_words=20))

    recited, babbled = (suite.measure(says(rule)).scores for rule in (recite, lambda _: BABBLE))

    passages = load_passages(NEWS, Split(answer_words=20))[0]
    cut = " ".join(BABBLE.split()[:20])
    expected = BertScore(str(tmp_path), 2).f1([passage.reference for passage in passages], [cut] * len(passages))
    found = [score.value for score in babbled if score.metric == "bertscore_f1"]
    assert found == pytest.approx(expected, abs=1e-6)
    assert means(recited)["bertscore_f1"] == pytest.approx(1.0, abs=1e-5)
    assert named(suite.figures(recited, babbled), "average_similarity_gap").note.endswith("sacrebleu, bertscore_f1")
    assert suite.describe()["bert_layers"] == 2


def test_figures_that_are_named_exist() -> None:
    suite = CopyrightSuite(NEWS, reference=scorer())
    scores = suite.measure(says(recite)).scores

    names = {figure.name for figure in [*mean_figures(scores), *suite.figures(scores, scores)]}

    assert set(suite.headline) <= names
    assert set(suite.directions) <= names


def test_what_decides_the_scores_is_described() -> None:
    described = [
        CopyrightSuite(NEWS).describe(),
        CopyrightSuite(NEWS, split=Split(prompt_words=49)).describe(),
        CopyrightSuite(NEWS, limit=5, seed=1).describe(),
        CopyrightSuite(STORY).describe(),
        CopyrightSuite(NEWS, reference=scorer()).describe(),
    ]

    assert len({json.dumps(one, sort_keys=True) for one in described}) == len(described)
    assert len({str(one["passages_sha256"]) for one in described[:4]}) == 4
    assert described[4]["reference"] == scorer().target.describe()
    assert described[0] == CopyrightSuite(NEWS).describe()


def test_prompt_and_completion_are_taken_as_they_are(tmp_path: Path) -> None:
    source = write_rows(tmp_path, {"prompt": "Ferry returns", "completion": "The ferry came back on Monday morning."})

    (passage,) = load_passages(source, Split(answer_words=5))[0]

    assert passage == Passage(
        "1", "Ferry returns", "The ferry came back on Monday morning.", "The ferry came back on", ""
    )


def test_a_title_is_given_where_asked_as_with_news_in_the_paper() -> None:
    passage = load_passages(NEWS, Split(title_prompt=True))[0][0]

    assert passage.prompt == "Harlow Bay ferry returns after eleven-month refit"
    assert passage.continuation.startswith("The ferry that links")


def test_a_book_is_cut_into_passages(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("\n".join(f"word{i}" for i in range(100)))

    loaded = load_passages(str(tmp_path / "book.txt"), Split(prompt_words=10, answer_words=20))[0]

    assert [(passage.example, passage.group) for passage in loaded] == [("1", "book"), ("2", "book"), ("3", "book")]
    assert loaded[1].prompt.split() == [f"word{i}" for i in range(30, 40)]
    assert loaded[1].continuation == loaded[1].reference
    assert loaded[1].reference.split() == [f"word{i}" for i in range(40, 60)]


def test_a_limit_draws_by_seed_and_keeps_the_order() -> None:
    drawn = [[p.example for p in load_passages(NEWS, Split(), limit=4, seed=seed)[0]] for seed in (0, 0, 1)]

    assert drawn[0] == drawn[1] != drawn[2]
    assert all(ids == sorted(ids, key=int) and len(ids) == 4 for ids in drawn)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "Who?"}, r"rows\.jsonl:1: no known column; found question; expected one of text, article"),
        ({"text": "too short"}, r"rows\.jsonl:1: text has 2 words, fewer than the 50 to be given; take it out"),
        ({"text": "word " * 52}, r"rows\.jsonl:1: only 2 words follow what is given"),
        ({"article": 7}, r"rows\.jsonl:1: article is 7; give it text"),
        ({"content": " "}, r"rows\.jsonl:1: content is empty; give it text"),
        ({"prompt": "Once"}, r"rows\.jsonl:1: completion is missing; give it text"),
        ({"prompt": "Once", "completion": "upon a time"}, r"rows\.jsonl:1: only 3 words follow"),
    ],
)
def test_a_row_that_is_no_passage_is_named(tmp_path: Path, row: Mapping[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        CopyrightSuite(write_rows(tmp_path, row))


def test_other_bad_input_is_named(tmp_path: Path) -> None:
    source = write_rows(tmp_path, {"text": "word " * 200})
    for make, message in [
        (lambda: CopyrightSuite(str(tmp_path / "none.jsonl")), r"--passages: .*none\.jsonl: no such file"),
        (lambda: CopyrightSuite(source, split=Split(title_prompt=True)), r"rows\.jsonl:1: title is missing"),
        (lambda: CopyrightSuite(source, limit=0), "--limit: 0 leaves no passage"),
        (lambda: CopyrightSuite(source, max_new_tokens=0), "--max-new-tokens: 0 leaves no answer"),
        (lambda: CopyrightSuite(source, bert_layers=3), "--bert-layers: there is no --bert-model"),
        (
            lambda: CopyrightSuite(source, bert_model=str(tmp_path / "bert"), bert_layers=3),
            "--bert-model: .* be loaded",
        ),
        (lambda: Split(prompt_words=0), "--prompt-words: 0 gives nothing"),
        (lambda: Split(answer_words=3), "--answer-words: 3 are too few"),
    ]:
        with pytest.raises(DataError, match=message):
            make()
