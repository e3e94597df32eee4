"""The registry: what each method sees, refuses, and trains; and which way its first step goes."""

import dataclasses
import math
import re

import pytest
import torch
from loss_reference import cross_entropies, divergences
from method_answers import MODEL, REFERENCE, answers_for
from pydantic import ValidationError

from offline_training.data.answers import FullReference
from offline_training.data.tokens import STREAMS, Stream
from offline_training.errors import SettingsError
from offline_training.methods.method import MethodSettings
from offline_training.methods.registry import METHODS

OPTIONAL = {"simnpo", "dpo", "altpo", "idk", "undial", "wga", "satimp"}  # a retain term of weight 0 is none
PREFERRED: dict[str, Stream] = {"dpo": "idk", "altpo": "alternative"}
NAMES = (
    *("ft", "ga", "gd", "kl", "rd", "llmu", "scrub", "llmu-original", "npo", "npo-gd", "npo-kl", "simnpo", "dpo"),
    *("altpo", "idk", "rmu", "undial", "wga", "satimp", "ce-u", "pdu"),
)


def test_every_method_of_the_command_line_is_there() -> None:
    assert tuple(METHODS) == NAMES  # in the order in which help lists them
    assert all(name == method.name for name, method in METHODS.items())


@pytest.mark.parametrize("name", NAMES)
def test_entries_are_whole(name: str) -> None:
    method = METHODS[name]
    assert issubclass(method.settings, MethodSettings)
    assert method.summary
    assert "arXiv" in method.source
    assert method.references(method.settings()) <= set(method.streams)
    assert [stream for stream in STREAMS if stream in method.streams] == list(method.streams)
    assert hasattr(method.settings(), "random_answers") == ("random" in method.streams)
    for field in method.settings.model_fields.values():
        assert field.description


@pytest.mark.parametrize("name", NAMES)
def test_unknown_and_endless_settings_are_refused(name: str) -> None:
    settings = METHODS[name].settings
    with pytest.raises(ValidationError):
        settings(no_such_setting=1)
    for key, field in settings.model_fields.items():
        if field.annotation is float:
            for value in (math.inf, math.nan, -1.0):
                with pytest.raises(ValidationError):
                    settings.model_validate({key: value})


@pytest.mark.parametrize("name", NAMES)
def test_every_term_has_a_gradient_in_its_own_stream_alone(name: str) -> None:
    method = METHODS[name]
    for streams in {tuple(epoch) for epoch in method.epochs(5, method.settings())}:
        answers = answers_for(name, streams)
        terms = method.terms(answers, method.settings())
        assert {term.stream for term in terms} == set(streams) - {PREFERRED.get(name)}
        for term in terms:
            leaves = {stream: given.hidden if name == "rmu" else given.logits for stream, given in answers.items()}
            gradients = torch.autograd.grad(term.values.sum(), list(leaves.values()), allow_unused=True)
            moved = {s for s, g in zip(leaves, gradients, strict=True) if g is not None and g.abs().sum() > 0}
            chosen = {PREFERRED[name]} if name in PREFERRED and term.stream == "forget" else set()
            assert moved == {term.stream} | chosen


@pytest.mark.parametrize("name", sorted(n for n, m in METHODS.items() if m.references(m.settings()) and n != "rmu"))
def test_only_some_methods_need_the_full_reference(name: str) -> None:
    answers = answers_for(name, METHODS[name].streams, top_k=True)
    if METHODS[name].needs_full_reference:
        with pytest.raises(SettingsError, match=r"^reference_cache: .* choose hidden or logits"):
            METHODS[name].terms(answers, METHODS[name].settings())
    else:
        assert all(torch.isfinite(t.values).all() for t in METHODS[name].terms(answers, METHODS[name].settings()))


def test_a_kl_on_the_retain_set_needs_the_model_before() -> None:
    for name, method in METHODS.items():
        for retain_loss in ("nll", "kl") if name in ("simnpo", "dpo", "altpo") else (None,):
            settings = method.settings() if retain_loss is None else method.settings(retain_loss=retain_loss)
            known = frozenset({"retain"}) if retain_loss == "kl" else frozenset()
            by_kl = retain_loss == "kl" or name in ("kl", "llmu", "llmu-original", "npo-kl")
            assert method.keeps_by_divergence(settings) == by_kl
            assert method.references(settings) >= known | method.reference
            assert ("retain" in method.references(settings)) == (by_kl or name in ("scrub", "rmu"))


def test_a_reference_that_is_not_given_is_an_error() -> None:
    answers = {s: dataclasses.replace(a, reference=None) for s, a in answers_for("kl").items()}
    with pytest.raises(ValueError, match=r"^reference: "):
        METHODS["kl"].terms(answers, METHODS["kl"].settings())
    bare = {s: dataclasses.replace(a, reference_hidden=None) for s, a in answers_for("rmu").items()}
    with pytest.raises(ValueError, match=r"^hidden: "):
        METHODS["rmu"].terms(bare, METHODS["rmu"].settings())


@pytest.mark.parametrize(
    ("epochs", "max_epochs", "expected"),
    [
        (5, 4, "max min max min min"),  # ECO's
        (4, 4, "max min max min"),
        (3, 4, "max min min"),  # never ends with a max epoch
        (2, 1, "max min"),
        (6, 1, "max min min min min min"),
        (6, 4, "max min max min min min"),
        (6, 5, "max min max min max min"),
    ],
)
def test_scrub_epochs(epochs: int, max_epochs: int, expected: str) -> None:
    method = METHODS["scrub"]
    names = {("forget",): "max", ("retain",): "min"}
    got = method.epochs(epochs, method.settings.model_validate({"max_epochs": max_epochs}))
    assert " ".join(names[tuple(streams)] for streams in got) == expected


def test_scrub_needs_two_epochs() -> None:
    with pytest.raises(SettingsError, match=r"^epochs: .* at least 2"):
        METHODS["scrub"].epochs(1, METHODS["scrub"].settings())


def test_only_rmu_wants_hidden_states_and_some_weights() -> None:
    for name, method in METHODS.items():
        wants = name == "rmu"
        assert (method.hidden_layer(method.settings()) is not None) == wants
        assert (method.trained_parameters(method.settings()) is not None) == wants
    settings = METHODS["rmu"].settings.model_validate({"hidden_layer": 5, "trained_parameters": ".*mlp.*"})
    assert METHODS["rmu"].hidden_layer(settings) == 5
    assert METHODS["rmu"].trained_parameters(settings) == ".*mlp.*"
    with pytest.raises(ValidationError, match="not a regular expression"):
        METHODS["rmu"].settings.model_validate({"trained_parameters": "("})


PROJECTIONS = [
    "model.layers.{}.mlp.down_proj.weight",  # Llama, Mistral, Qwen, Gemma, Phi-3
    "model.layers.{}.mlp.experts.down_proj",  # Mixtral
    "model.layers.{}.mlp.fc2.weight",  # Phi
    "model.layers.{}.mlp.c_proj.weight",  # StarCoder 2
    "model.decoder.layers.{}.fc2.weight",  # OPT
    "gpt_neox.layers.{}.mlp.dense_4h_to_h.weight",
    "transformer.h.{}.mlp.c_proj.weight",  # GPT-2
    "transformer.h.{}.mlp.fc_out.weight",  # GPT-J
    "transformer.blocks.{}.ffn.down_proj.weight",  # MPT
]
OTHERS = [
    "model.layers.{}.mlp.up_proj.weight",
    "model.layers.{}.self_attn.o_proj.weight",
    "transformer.h.{}.attn.c_proj.weight",
    "transformer.h.{}.mlp.c_proj.bias",
    "model.decoder.layers.{}.fc1.weight",
]


@pytest.mark.parametrize("hidden_layer", [7, 1, 0, -2])
def test_rmu_trains_the_projections_of_three_layers(hidden_layer: int) -> None:
    settings = METHODS["rmu"].settings.model_validate({"hidden_layer": hidden_layer})
    pattern = METHODS["rmu"].trained_parameters(settings)
    assert pattern is not None
    for match in (re.fullmatch, re.search):
        for layer in (*range(12), 17, 70):
            wanted = hidden_layer < 0 or hidden_layer - 2 <= layer <= hidden_layer
            for name in PROJECTIONS:
                assert bool(match(pattern, name.format(layer))) == wanted, name
            assert not any(match(pattern, name.format(layer)) for name in OTHERS)


@pytest.mark.parametrize("name", sorted(OPTIONAL))
def test_without_retain_weight_no_retain_examples_are_seen(name: str) -> None:
    method = METHODS[name]
    off, on = (method.settings.model_validate({"retain_weight": weight}) for weight in (0.0, 0.5))
    without = tuple(stream for stream in method.streams if stream != "retain")
    assert method.epochs(3, off) == [without] * 3
    assert method.epochs(3, on) == [method.streams] * 3
    assert len(method.terms(answers_for(name, without), off)) == 1
    assert [t.weight for t in method.terms(answers_for(name, method.streams), on)][1:] == [0.5]


@pytest.mark.parametrize("name", sorted(set(NAMES) - OPTIONAL - {"scrub"}))
def test_all_streams_in_every_epoch(name: str) -> None:
    method = METHODS[name]
    assert method.epochs(2, method.settings()) == [method.streams] * 2


def test_descent_on_each_method_makes_the_answer_to_forget_less_likely() -> None:
    """From the reference on, as a job starts; RMU sees hidden states alone, rd and idk teach other answers, and PDU
    flattens whatever is likeliest."""
    for name in set(NAMES) - {"ft", "rd", "idk", "rmu", "pdu"}:
        method = METHODS[name]
        start = next(s for s in method.epochs(5, method.settings()) if "forget" in s)
        answers = answers_for(name, start)
        logits = answers["forget"].logits
        if name == "scrub":  # at the reference itself its divergence has no gradient
            before = divergences(logits.detach(), REFERENCE["forget"], 4.0)
        else:
            answers = {
                s: dataclasses.replace(a, reference=FullReference(MODEL[s]) if a.reference else None)
                for s, a in answers.items()
            }
            before = cross_entropies(logits.detach())
        settings = method.settings.model_validate({"skipped_tokens": 0} if name == "ce-u" else {})
        loss = sum((t.weight * t.values.mean() for t in method.terms(answers, settings)), start=torch.zeros(()))
        [gradient] = torch.autograd.grad(loss, [logits])
        moved = logits.detach() - 1e-2 / gradient.abs().max() * gradient
        after = divergences(moved, REFERENCE["forget"], 4.0) if name == "scrub" else cross_entropies(moved)
        assert sum(after) > sum(before), name
