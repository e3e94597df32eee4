"""Each method's terms are the documented losses, weights, units and streams."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from loss_reference import TARGETS, A, S, V, close, cross_entropies, divergences, log_ratios, means, sigmoid, softmax
from method_answers import HIDDEN, MODEL, OLD_HIDDEN, REFERENCE, D, answers_for

from offline_training.data.answers import Term
from offline_training.data.tokens import Stream
from offline_training.errors import DataError
from offline_training.methods.registry import METHODS


def terms_of(name: str, streams: Sequence[Stream] | None = None, **settings: Any) -> list[Term]:
    method = METHODS[name]
    return list(method.terms(answers_for(name, streams), method.settings(**settings)))


def check(term: Term, name: str, stream: Stream, unit: str, weight: float, values: Sequence[float]) -> None:
    assert (term.name, term.stream, term.unit) == (name, stream, unit)
    assert term.weight == pytest.approx(weight)
    assert term.values.shape == ((A,) if unit == "token" else (S,))
    assert close(term.values, values)


def ce(stream: Stream) -> list[float]:
    return cross_entropies(MODEL[stream])


def kl(stream: Stream, temperature: float = 1.0) -> list[float]:
    return divergences(MODEL[stream], REFERENCE[stream], temperature)


def test_ft() -> None:
    [retain] = terms_of("ft")
    check(retain, "retain_ce", "retain", "token", 1.0, ce("retain"))


def test_ga() -> None:
    [forget] = terms_of("ga")
    check(forget, "forget_ce", "forget", "token", -1.0, ce("forget"))


def test_gd() -> None:
    forget, retain = terms_of("gd", forget_weight=0.25, retain_weight=2.0)
    check(forget, "forget_ce", "forget", "token", -0.25, ce("forget"))
    check(retain, "retain_ce", "retain", "token", 2.0, ce("retain"))
    assert [term.weight for term in terms_of("gd")] == [-1.0, 1.0]


def test_kl() -> None:
    forget, retain = terms_of("kl", retain_weight=3.0)
    check(forget, "forget_ce", "forget", "token", -1.0, ce("forget"))
    check(retain, "retain_kl", "retain", "token", 3.0, kl("retain"))


def test_rd() -> None:
    random, retain = terms_of("rd", random_weight=0.5)
    check(random, "random_ce", "random", "token", 0.5, ce("random"))
    check(retain, "retain_ce", "retain", "token", 1.0, ce("retain"))
    assert METHODS["rd"].settings().random_answers == 1


def test_llmu() -> None:
    forget, random, retain = terms_of("llmu")
    check(forget, "forget_ce", "forget", "token", -0.1, ce("forget"))
    check(random, "random_ce", "random", "token", 1.0, ce("random"))
    check(retain, "retain_kl", "retain", "token", 1.0, kl("retain"))
    assert [t.weight for t in terms_of("llmu", forget_weight=2, random_weight=3, retain_weight=4)] == [-2, 3, 4]


def test_llmu_original_weighs_answers_and_not_tokens() -> None:
    forget, random, retain = terms_of("llmu-original")
    check(forget, "forget_ce", "forget", "sequence", -0.5, means(ce("forget")))
    check(random, "random_ce", "random", "sequence", 1.0, means(ce("random")))
    check(retain, "retain_kl", "retain", "token", 1.0, kl("retain"))
    assert METHODS["llmu-original"].settings().random_answers == 5


def test_scrub_max_step() -> None:
    [forget] = terms_of("scrub", ["forget"])
    check(forget, "forget_kl", "forget", "token", -16.0, kl("forget", 4.0))


def test_scrub_min_step() -> None:
    retain, distilled = terms_of("scrub", ["retain"], retain_weight=0.99, distillation_weight=0.5, temperature=2.0)
    check(retain, "retain_ce", "retain", "token", 0.99, ce("retain"))
    check(distilled, "retain_kl", "retain", "token", 0.5 * 4, kl("retain", 2.0))
    assert [t.weight for t in terms_of("scrub", ["retain"])] == pytest.approx([1.0, 0.001 * 16])
    assert len(terms_of("scrub", ["retain"], distillation_weight=0.0)) == 1


def npo_values(beta: float) -> list[float]:
    return [2 / beta * math.log(1 + math.exp(beta * r)) for r in log_ratios(MODEL["forget"], REFERENCE["forget"])]


@pytest.mark.parametrize("beta", [0.1, 0.3, 4.5])
def test_npo(beta: float) -> None:
    [forget] = terms_of("npo", beta=beta)
    check(forget, "forget_npo", "forget", "sequence", 1.0, npo_values(beta))
    assert METHODS["npo"].settings().model_dump() == {"beta": 0.1}


def test_npo_with_a_retain_term() -> None:
    forget, retain = terms_of("npo-gd", forget_weight=0.5, retain_weight=2.0)
    check(forget, "forget_npo", "forget", "sequence", 0.5, npo_values(0.1))
    check(retain, "retain_ce", "retain", "token", 2.0, ce("retain"))
    forget, retain = terms_of("npo-kl", beta=1.0)
    check(forget, "forget_npo", "forget", "sequence", 1.0, npo_values(1.0))
    check(retain, "retain_kl", "retain", "token", 1.0, kl("retain"))


@pytest.mark.parametrize(("beta", "margin"), [(4.5, 0.5), (0.1, 0.0), (2.5, 1.5)])
def test_simnpo(beta: float, margin: float) -> None:
    forget, retain = terms_of("simnpo", beta=beta, margin=margin)
    expected = [-2 / beta * math.log(sigmoid(beta * x - margin)) for x in means(ce("forget"))]
    check(forget, "forget_simnpo", "forget", "sequence", 0.125, expected)
    check(retain, "retain_ce", "retain", "token", 1.0, ce("retain"))
    assert METHODS["simnpo"].reference == frozenset()
    assert METHODS["simnpo"].settings().model_dump() == {
        "beta": 4.5,
        "margin": 0.0,
        "retain_loss": "nll",
        "forget_weight": 0.125,
        "retain_weight": 1.0,
    }


@pytest.mark.parametrize("beta", [0.2, 1.0])
def test_dpo_prefers_the_refusal(beta: float) -> None:
    forget, retain = terms_of("dpo", beta=beta)
    chosen, rejected = (log_ratios(MODEL[s], REFERENCE[s]) for s in ("idk", "forget"))
    expected = [-2 / beta * math.log(sigmoid(beta * (c - r))) for c, r in zip(chosen, rejected, strict=True)]
    check(forget, "forget_dpo", "forget", "sequence", 1.0, expected)
    check(retain, "retain_ce", "retain", "token", 1.0, ce("retain"))


@pytest.mark.parametrize("beta", [0.05, 0.5])
def test_altpo_prefers_the_alternative(beta: float) -> None:
    forget, retain = terms_of("altpo", beta=beta, retain_weight=2.0)
    chosen, rejected = (log_ratios(MODEL[s], REFERENCE[s]) for s in ("alternative", "forget"))
    expected = [2 / beta * math.log(1 + math.exp(-beta * (c - r))) for c, r in zip(chosen, rejected, strict=True)]
    check(forget, "forget_altpo", "forget", "sequence", 1.0, expected)
    check(retain, "retain_ce", "retain", "token", 2.0, ce("retain"))
    assert METHODS["altpo"].settings().model_dump() == {
        "retain_loss": "nll",
        "beta": 0.1,
        "forget_weight": 1.0,
        "retain_weight": 1.0,
    }


@pytest.mark.parametrize("name", ["simnpo", "dpo", "altpo"])
def test_the_retain_term_of_a_preference_may_be_a_kl(name: str) -> None:
    forget, retain = terms_of(name, retain_loss="kl", retain_weight=0.5)
    assert forget.name == f"forget_{name}"
    check(retain, "retain_kl", "retain", "token", 0.5, kl("retain"))


def test_pdu_flattens_the_logits() -> None:
    forget, retain = terms_of("pdu")
    expected = [(max(row) - sum(row) / V) ** 2 for row in MODEL["forget"].tolist()]
    check(forget, "forget_margin", "forget", "token", 1.0, expected)
    check(retain, "retain_ce", "retain", "token", 100.0, ce("retain"))


def test_pdus_weight_is_the_multiplier_of_the_bound() -> None:
    """λ <- max(0, λ + η (loss - ε)): by hand, above the bound, on it, and so far below that it would be negative."""
    method = METHODS["pdu"]
    dual = method.dual(method.settings.model_validate({"retain_bound": 0.25, "dual_rate": 4.0}))
    assert dual is not None
    assert (dual.term, dual.warmup_epochs) == ("retain_ce", 5)
    assert [dual.moved(10.0, 0.75), dual.moved(10.0, 0.25), dual.moved(0.5, 0.0)] == [12.0, 10.0, 0.0]
    assert all(other.dual(other.settings()) is None for name, other in METHODS.items() if name != "pdu")


def test_dpo_needs_a_refusal_for_each_answer() -> None:
    answers = answers_for("dpo")
    answers["idk"] = dataclasses.replace(answers["idk"], sequences=S + 1)
    with pytest.raises(DataError, match=r"^4 preferred answers for 3 to forget"):
        METHODS["dpo"].terms(answers, METHODS["dpo"].settings())


def test_idk() -> None:
    refusal, retain = terms_of("idk", idk_weight=0.5)
    check(refusal, "idk_ce", "idk", "token", 0.5, ce("idk"))
    check(retain, "retain_ce", "retain", "token", 1.0, ce("retain"))


def test_rmu() -> None:
    forget, retain = terms_of("rmu", steering_coefficient=3.0, retain_weight=1200.0, vector_seed=7)
    drawn = torch.rand(D, generator=torch.Generator().manual_seed(7)).tolist()
    length = math.sqrt(sum(x * x for x in drawn))
    vector = [3.0 * x / length for x in drawn]
    steered = [sum((h - c) ** 2 for h, c in zip(row, vector, strict=True)) / D for row in HIDDEN.tolist()]
    kept = [
        sum((h - o) ** 2 for h, o in zip(row, old, strict=True)) / D
        for row, old in zip((HIDDEN + 1).tolist(), OLD_HIDDEN.tolist(), strict=True)
    ]
    check(forget, "forget_distance", "forget", "token", 1.0, steered)
    check(retain, "retain_distance", "retain", "token", 1200.0, kept)

    # Without a coefficient the vector is as many times as long as each state was.
    adaptive, retain = terms_of("rmu", steering_scale=2.0, vector_seed=7)
    steered = []
    for row, old in zip(HIDDEN.tolist(), OLD_HIDDEN.tolist(), strict=True):
        long = 2.0 * math.sqrt(sum(o * o for o in old)) / length
        steered.append(sum((h - long * x) ** 2 for h, x in zip(row, drawn, strict=True)) / D)
    check(adaptive, "forget_distance", "forget", "token", 1.0, steered)
    assert retain.weight == 1.0


@pytest.mark.parametrize("strength", [0.5, 2.0, 10.0])
def test_undial(strength: float) -> None:
    [forget] = terms_of("undial", strength=strength)
    expected = []
    for row, old, target in zip(MODEL["forget"].tolist(), REFERENCE["forget"].tolist(), TARGETS.tolist(), strict=True):
        wanted = softmax([x - strength * (v == target) for v, x in enumerate(old)])
        q = softmax(row)
        expected.append(-sum(wanted[v] * math.log(q[v]) for v in range(V)))
    check(forget, "forget_undial", "forget", "token", 1.0, expected)
    assert terms_of("undial", ["forget", "retain"], retain_weight=0.5)[1].weight == 0.5


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
def test_wga(beta: float) -> None:
    forget, retain = terms_of("wga", beta=beta)
    check(forget, "forget_wga", "forget", "token", -1.0, [math.exp(-x) ** beta * x for x in ce("forget")])
    check(retain, "retain_ce", "retain", "token", 1.0, ce("retain"))


@pytest.mark.parametrize(("beta1", "beta2"), [(5.0, 1.0), (0.0, 0.0), (1.0, 5.0), (0.5, 0.0), (0.0, 3.0)])
def test_satimp(beta1: float, beta2: float) -> None:
    forget, retain = terms_of("satimp", saturation_power=beta1, importance_power=beta2)
    expected = [math.exp(-x) ** beta1 * (1 - math.exp(-x)) ** beta2 * x for x in ce("forget")]
    check(forget, "forget_satimp", "forget", "token", -1.0, expected)
    check(retain, "retain_ce", "retain", "token", 0.1, ce("retain"))
    assert METHODS["satimp"].settings().model_dump(include={"saturation_power", "importance_power"}) == {
        "saturation_power": 5.0,
        "importance_power": 1.0,
    }


@pytest.mark.parametrize("skipped", [0, 1, 2])
def test_ceu_leaves_the_first_tokens_of_each_answer(skipped: int) -> None:
    [forget] = terms_of("ce-u", skipped_tokens=skipped)
    expected = []
    for row, target, place in zip(MODEL["forget"].tolist(), TARGETS.tolist(), [0, 1, 2, 0, 0, 1, 2], strict=True):
        p = softmax(row)
        value = -sum(p[v] / (1 - p[target]) * math.log(p[v]) for v in range(V) if v != target)
        expected.append(value if place >= skipped else 0.0)
    check(forget, "forget_ceu", "forget", "token", 1.0, expected)
    assert METHODS["ce-u"].settings().skipped_tokens == 1
