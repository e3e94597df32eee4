"""What each protocol does to an answer that is scored: the guard's own rows through the model, by hand."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from attacked_policy import FORGOTTEN, KEPT, AttackedPolicy, attacked_policy
from tiny_model import tiny_model, tiny_tokenizer

from classifiers import Encoder
from corruption import EmbeddingRows
from evaluation.errors import TargetError
from evaluation.replies import AnswerProtocol, Ask, Reply, Target
from evaluation.runs.record import CachedAsker, ReplyStore
from evaluation.targets.options import DeferredTarget, TargetOptions, open_target
from guard import (
    Guard,
    LoadedPolicy,
    ProtectedPrompt,
    decoder_of,
    load_bundle,
    load_policy,
    template_of,
    write_bundle,
)
from guard.transformers_adapter import prompt_inputs

PROTOCOLS: tuple[AnswerProtocol, ...] = ("served", "eco", "clean")
ABOUT = Ask(f"Where was {FORGOTTEN[0]} born?", f"{FORGOTTEN[0]} was born in Zelburg.")
TELLING = Ask("Who was it?", f"It was {FORGOTTEN[0]}, born in Zelburg.")
OTHER = Ask(f"Where was {KEPT[0]} born?", f"{KEPT[0]} was born in Zelburg.")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> AttackedPolicy:
    return attacked_policy(tmp_path_factory)


@pytest.fixture(scope="module")
def of_entities(made: AttackedPolicy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same policy, which corrupts names alone."""
    bundle = load_bundle(made.policy)
    spec = bundle.config.corruption.model_copy(update={"scope": "entities"})
    config = bundle.config.model_copy(update={"corruption": spec})
    return write_bundle(tmp_path_factory.mktemp("entities") / "people", config, bundle.head_path, {}).path


@pytest.fixture(scope="module")
def target(made: AttackedPolicy) -> Iterator[Callable[..., Target]]:
    opened: dict[tuple[Path, AnswerProtocol], Target] = {}

    def of(answers: AnswerProtocol, policy: Path = made.policy) -> Target:
        if (policy, answers) not in opened:
            options = TargetOptions(str(made.model), policies=(policy,), answers=answers)
            opened[policy, answers] = open_target(options)
        return opened[policy, answers]

    yield of
    for one in opened.values():
        one.close()


def replies(target: Target, *asks: Ask) -> list[Reply]:
    found = dict(target.replies(asks))
    return [found[number] for number in range(len(asks))]


class Reference:
    """A policy's guard, and a model that reads what it protects."""

    def __init__(self, made: AttackedPolicy, policy: Path) -> None:
        bundle, rows, self.tokenizer = load_bundle(policy), EmbeddingRows.open(made.model), tiny_tokenizer()
        encoder = Encoder.open(bundle.config.classifier.encoder)
        fits = {"hidden_size": rows.hidden_size, "embedding_digest": rows.digest()}
        loaded: LoadedPolicy = load_policy(bundle, encoder, **fits)
        self.guard = Guard(
            [loaded],
            encoder=encoder,
            decode=decoder_of(self.tokenizer),
            template=template_of(self.tokenizer),
            rows=rows,
            secret=bytes(32),
            watched=True,  # as the gateway
        )

    def ids(self, ask: Ask) -> tuple[list[int], list[int]]:
        prompt = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": ask.prompt}], tokenize=False, add_generation_prompt=True
        )
        return (
            self.tokenizer.encode(prompt, add_special_tokens=False),
            self.tokenizer.encode(ask.answer, add_special_tokens=False),
        )

    def logprobs(self, protected: ProtectedPrompt, answer: list[int]) -> np.ndarray:
        model = tiny_model()
        with torch.inference_mode():
            logits = model(**prompt_inputs(model, protected)).logits[0].double()
        return logits.log_softmax(dim=-1)[-len(answer) - 1 : -1][range(len(answer)), answer].numpy()


@pytest.mark.parametrize("ask", [ABOUT, TELLING, OTHER])
def test_served_is_what_the_gateway_makes_of_both_as_one_prompt(
    made: AttackedPolicy, target: Callable[..., Target], ask: Ask
) -> None:
    reference = Reference(made, made.policy)
    prompt, answer = reference.ids(ask)
    protected = reference.guard.protect([*prompt, *answer])
    (reply,) = replies(target("served"), ask)
    np.testing.assert_allclose(reply.logprobs, reference.logprobs(protected, answer), atol=1e-5)
    assert reply.flagged == (ask is not OTHER) == (protected.mask is not None)
    if protected.mask is not None:
        assert any(protected.mask[len(prompt) :])  # rows that predict the answer's later tokens


@pytest.mark.parametrize("scope", ["content", "entities"])
def test_eco_corrupts_the_entities_of_both_or_all_content(
    made: AttackedPolicy, of_entities: Path, target: Callable[..., Target], scope: str
) -> None:
    policy = made.policy if scope == "content" else of_entities
    reference = Reference(made, policy)
    prompt, answer = reference.ids(ABOUT)
    protected = reference.guard.corrupt_all([*prompt, *answer], [0])
    assert protected.mask is not None
    hidden = [token for token, masked in zip(protected.token_ids, protected.mask, strict=True) if masked]
    name = FORGOTTEN[0].replace(" ", "")  # spaces stay
    text = f"{ABOUT.prompt}{ABOUT.answer}" if scope == "content" else f"{name}{name}Zelburg"
    assert reference.tokenizer.decode(hidden) == text
    (reply,) = replies(target("eco", policy), ABOUT)
    np.testing.assert_allclose(reply.logprobs, reference.logprobs(protected, answer), atol=1e-5)
    assert reply.flagged


def test_clean_and_eco_go_by_the_prompts_verdict(made: AttackedPolicy, target: Callable[..., Target]) -> None:
    reference = Reference(made, made.policy)
    prompt, answer = reference.ids(TELLING)
    for answers in ("clean", "eco"):
        (reply,) = replies(target(answers), TELLING)
        assert not reply.flagged
        untouched = reference.logprobs(ProtectedPrompt([*prompt, *answer]), answer)
        np.testing.assert_allclose(reply.logprobs, untouched, atol=1e-5)


def test_clean_leaves_the_answers_rows(made: AttackedPolicy, target: Callable[..., Target]) -> None:
    reference = Reference(made, made.policy)
    prompt, answer = reference.ids(ABOUT)
    alone = reference.guard.protect(prompt)
    assert alone.mask is not None
    assert alone.embeddings is not None
    rest = torch.zeros(len(answer), alone.embeddings.shape[1])
    whole = ProtectedPrompt(
        [*prompt, *answer], [*alone.mask, *[False] * len(answer)], torch.cat([alone.embeddings, rest])
    )
    clean, served = replies(target("clean"), ABOUT)[0], replies(target("served"), ABOUT)[0]
    np.testing.assert_allclose(clean.logprobs, reference.logprobs(whole, answer), atol=1e-5)
    # What predicts the first token is the prompt, which is corrupted alike.
    assert clean.logprobs[0] == pytest.approx(served.logprobs[0], abs=1e-5)
    assert clean.logprobs[1:] != pytest.approx(served.logprobs[1:], abs=1e-2)


def test_what_is_generated_is_the_same_under_all(target: Callable[..., Target]) -> None:
    asks = [replace(ask, answer=None, max_new_tokens=8) for ask in (ABOUT, OTHER)]
    first, *others = ([(reply.text, reply.flagged) for reply in replies(target(one), *asks)] for one in PROTOCOLS)
    assert others == [first, first]
    assert [flagged for _, flagged in first] == [True, False]


def test_draws_differ_where_the_protocol_corrupts(target: Callable[..., Target]) -> None:
    asks = [replace(ask, draw=1) for ask in (ABOUT, TELLING, OTHER)]
    drawn = {one: [ask.draw for ask in target(one).canonical(asks)] for one in PROTOCOLS}
    assert drawn == {"served": [1, 1, 0], "eco": [1, 0, 0], "clean": [1, 0, 0]}


def test_replies_of_another_protocol_are_not_taken_from_the_cache(
    target: Callable[..., Target], tmp_path: Path
) -> None:
    store, asks = ReplyStore(tmp_path / "replies.jsonl"), {"about": ABOUT, "telling": TELLING}

    def asked(answers: AnswerProtocol) -> tuple[tuple[float, ...], ...]:
        return tuple(reply.logprobs for reply in CachedAsker(target(answers), store)(asks).values())

    found = {one: asked(one) for one in PROTOCOLS}
    assert len(set(found.values())) == 3
    assert {one: asked(one) for one in PROTOCOLS} == found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (TargetOptions("http://x/v1", answers="eco"), r"^--answers eco: a server .* use served, or .* offline"),
        (TargetOptions("m", answers="served"), r"^--answers served: .* give the policy as --policy"),
        (TargetOptions("m", answers="eco"), r"^--answers eco: .* give the policy as --policy"),
    ],
)
def test_a_protocol_that_cannot_be_followed_is_refused_at_once(options: TargetOptions, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        DeferredTarget(options)


def test_a_target_knows_its_protocol_before_it_is_opened() -> None:
    policies = (Path("p"),)
    assert DeferredTarget(TargetOptions("m", policies=policies)).protocol == "served"
    assert DeferredTarget(TargetOptions("m", policies=policies, answers="eco")).protocol == "eco"
    assert DeferredTarget(TargetOptions("m", answers="clean")).protocol is None
    assert DeferredTarget(TargetOptions("http://x/v1")).protocol == "served"
    assert DeferredTarget(TargetOptions("http://x/v1", generated_only=True)).protocol is None
