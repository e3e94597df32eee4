"""The gate over a real bundle, head and guard; and rates with intervals that are SciPy's."""

from pathlib import Path

import pytest
from attacked_policy import FORGOTTEN, KEPT, AttackedPolicy, attacked_policy
from scipy.stats import binomtest  # type: ignore[import-untyped]
from tiny_model import tiny_tokenizer

from corruption import EmbeddingRows
from evaluation.attacks.gate import Gate, gate_figures, gate_scores
from evaluation.errors import EvaluationError
from evaluation.suite import Figure, Score
from guard import Guard, decoder_of, load_bundle, load_policy, template_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> AttackedPolicy:
    return attacked_policy(tmp_path_factory)


@pytest.fixture(scope="module")
def gate(made: AttackedPolicy) -> Gate:
    return Gate.open([made.policy], str(made.model))


def test_it_tells_the_forgotten_from_the_kept(gate: Gate) -> None:
    forgotten = gate.flags([f"What is known about {person}?" for person in FORGOTTEN])
    kept = gate.flags([f"What is known about {person}?" for person in KEPT])
    assert all(verdict.flagged and verdict.policies == ("people",) for verdict in forgotten)
    assert not any(verdict.flagged or verdict.policies for verdict in kept)
    assert min(verdict.score for verdict in forgotten) > max(verdict.score for verdict in kept)


def test_a_verdict_is_the_guards_own_for_the_served_ids(made: AttackedPolicy, gate: Gate) -> None:
    from classifiers import Encoder, resolve_encoder

    bundle = load_bundle(made.policy)
    encoder = Encoder.open(resolve_encoder(bundle.config.classifier.encoder))
    rows, tokenizer = EmbeddingRows.open(made.model), tiny_tokenizer()
    policy = load_policy(bundle, encoder, hidden_size=rows.hidden_size, embedding_digest=rows.digest())
    guard = Guard(
        [policy],
        encoder=encoder,
        decode=decoder_of(tokenizer),
        template=template_of(tokenizer),
        rows=rows,
        secret=b"x" * 32,
    )
    texts = ["Who is Keltor Shiquomi?", "Who is Mizan Pogruya?", "Where is the salt?"]
    for text, verdict in zip(texts, gate.flags(texts), strict=True):
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        wanted = guard.protect(ids).verdicts[0]
        assert (verdict.flagged, verdict.score) == (wanted.flagged, pytest.approx(wanted.score))


def test_flagged_is_what_reaches_the_threshold(gate: Gate, made: AttackedPolicy) -> None:
    threshold = load_bundle(made.policy).config.classifier.threshold
    verdicts = gate.flags([f"{word} {FORGOTTEN[0]} {word}" for word in ("Hello", "Xyzzy", "Oslo")] + ["Good morning."])
    assert [verdict.flagged for verdict in verdicts] == [verdict.score >= threshold for verdict in verdicts]
    assert [policy["threshold"] for policy in gate.describe()["policies"]] == [threshold]  # type: ignore[attr-defined]


def test_answers_are_judged_as_bare_text_and_an_empty_one_is_not_flagged(gate: Gate) -> None:
    verdicts = gate.flags([f"{FORGOTTEN[0]} was born in Zelburg.", "", "I do not know."], style="text")
    assert [verdict.flagged for verdict in verdicts] == [True, False, False]
    assert verdicts[1].score == 0.0


def test_many_prompts_are_judged_as_one_by_one(gate: Gate) -> None:
    texts = [f"Number {number}: who is {(*FORGOTTEN, *KEPT)[number % 11]}?" for number in range(70)]
    together = gate.flags(texts)
    assert [verdict.flagged for verdict in together] == [gate.flags([text])[0].flagged for text in texts]
    assert {verdict.flagged for verdict in together} == {True, False}


def test_scores_name_subset_kind_and_example(gate: Gate) -> None:
    scores = gate_scores(gate, "forget", [("7", "plain", f"Who is {FORGOTTEN[1]}?"), ("7", "typos", "Good morning.")])
    assert [(s.metric, s.example, s.group, s.value) for s in scores if s.metric == "flagged"] == [
        ("flagged", "7/plain", "plain", 1.0),
        ("flagged", "7/typos", "typos", 0.0),
    ]
    assert all(0 <= s.value <= 1 for s in scores if s.metric == "gate_score")


def test_a_policy_of_another_model_is_refused(made: AttackedPolicy, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    other.mkdir()
    for file in made.model.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    weights = load_file(other / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, other / "model.safetensors")
    with pytest.raises(EvaluationError, match=r"^--gate-policy: .*embedding_digest"):
        Gate.open([made.policy], str(other))


def test_what_cannot_be_opened_is_named(made: AttackedPolicy, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"^--gate-policy: give at least one"):
        Gate.open([], str(made.model))
    with pytest.raises(EvaluationError, match=r"^--gate-policy: .*no such policy folder"):
        Gate.open([tmp_path / "none"], str(made.model))
    with pytest.raises(EvaluationError, match=r"^--gate-model: "):
        Gate.open([made.policy], str(tmp_path))


def flags_of(subset: str, table: dict[str, list[int]], draw: int = 0) -> list[Score]:
    return [
        Score(subset, "flagged", f"{number}/{kind}", float(flag), kind, draw)
        for kind, flags in table.items()
        for number, flag in enumerate(flags)
    ]


def by_name(figures: list[Figure]) -> dict[str, Figure]:
    return {figure.name: figure for figure in figures}


def test_rates_and_intervals_by_kind_are_scipys() -> None:
    table = {"plain": [1] * 20, "typos": [1] * 13 + [0] * 7}
    figures = by_name(gate_figures(flags_of("forget", table), forgotten=frozenset({"forget"})))
    for kind, missed in (("plain", 0), ("typos", 7)):
        figure = figures[f"forget/missed/{kind}"]
        wanted = binomtest(missed, 20).proportion_ci(0.95, method="exact")
        assert (figure.value, figure.n) == (missed / 20, 20)
        assert (figure.low, figure.high) == (pytest.approx(wanted.low), pytest.approx(wanted.high))


def test_the_rate_over_all_kinds_counts_questions_and_not_their_variants() -> None:
    table = {kind: [1] * 10 + [0] * 10 for kind in "abcdefgh"}  # every question is flagged always or never
    figure = by_name(gate_figures(flags_of("retain", table), forgotten=frozenset()))["retain/falsely_flagged"]
    assert (figure.value, figure.n) == (0.5, 20)
    assert figure.low is not None
    assert figure.low < 0.33  # 160 independent prompts would give about 0.42


def test_a_rate_of_nothing_keeps_an_honest_interval() -> None:
    figure = by_name(gate_figures(flags_of("general", {"a": [0] * 30, "b": [0] * 30}), forgotten=frozenset()))[
        "general/falsely_flagged"
    ]
    wanted = binomtest(0, 30).proportion_ci(0.95, method="exact")
    assert (figure.value, figure.low, figure.high) == (0.0, 0.0, pytest.approx(wanted.high))


def test_noise_draws_of_the_same_verdicts_do_not_count_twice() -> None:
    scores = [*flags_of("forget", {"plain": [1, 0, 1]}), *flags_of("forget", {"plain": [1, 0, 1]}, draw=1)]
    assert by_name(gate_figures(scores, forgotten=frozenset({"forget"})))["forget/missed/plain"].n == 3
