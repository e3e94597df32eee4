"""From two example files to a verdict, with the real encoder and a real (untrained) model."""

from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from classifiers import Encoder, resolve_encoder
from classifiers.prompt_classifier import HeadClassifier
from corruption import EmbeddingRows
from demo.lessons import write_examples
from demo.tokenizer import train_tokenizer
from demo.world import World, WorldSpec
from guard import Guard, PolicyBundle, PolicyMismatchError, decoder_of, load_policy, template_of
from guard.answers import AnswerGuard
from guard.classification import WindowClassifier
from optimizer import BuildOptions, InputOptions, SearchOptions, build_policy
from optimizer.objective.guarded_content import guarded_content

WORLD = World.generate(WorldSpec(people=12, general_facts=40))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("build")
    write_examples(WORLD, folder)
    texts = [text for fact in WORLD.facts for text in (*fact.questions.trained, fact.answer)]
    tokenizer = train_tokenizer(texts, vocab_size=600, context_tokens=256)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder


def build(files: Path, out: str, **search: Any) -> PolicyBundle:
    options = BuildOptions(
        model=str(files / "model"),
        inputs=InputOptions(forget=files / "forget.jsonl", retain=files / "retain.jsonl"),
        out=files / out,
        name="people",
        search=SearchOptions(examples=8, **search),
    )
    return build_policy(options, console=Console(quiet=True))


@pytest.fixture(scope="module")
def bundle(files: Path) -> PolicyBundle:
    return build(files, "first")


@pytest.fixture(scope="module")
def parts(files: Path, bundle: PolicyBundle) -> dict[str, Any]:
    encoder = Encoder.open(resolve_encoder(bundle.config.classifier.encoder))
    rows = EmbeddingRows.open(files / "model")
    tokenizer = AutoTokenizer.from_pretrained(files / "model")
    return {"encoder": encoder, "rows": rows, "tokenizer": tokenizer}


def test_the_same_inputs_build_the_same_policy(files: Path, bundle: PolicyBundle) -> None:
    assert build(files, "second").digest == bundle.digest


def test_the_report_says_what_was_searched_and_measured(bundle: PolicyBundle) -> None:
    search = bundle.report["search"]
    assert len(search["evaluations"]) >= 9
    assert bundle.config.corruption.strength == search["spec"]["strength"]
    assert bundle.config.classifier.calibration["level"] == 0.01
    assert "conformal" in bundle.config.classifier.calibration["guarantee"]
    assert bundle.report["classifier"]["training"]["missed"] == 0
    assert set(bundle.report["effect"]) == {"forget", "retain"}
    assert bundle.report["effect"]["retain"]["guarded"] == bundle.report["effect"]["retain"]["unguarded"]
    assert bundle.config.provenance["seed"] == 0


def guard_of(bundle: PolicyBundle, parts: dict[str, Any], *, watched: bool = False) -> Guard:
    tokenizer, rows = parts["tokenizer"], parts["rows"]
    policy = load_policy(bundle, parts["encoder"], hidden_size=rows.hidden_size, embedding_digest=rows.digest())
    return Guard(
        [policy],
        encoder=parts["encoder"],
        decode=decoder_of(tokenizer),
        template=template_of(tokenizer),
        rows=rows,
        secret=bytes(32),
        watched=watched,
    )


def test_a_search_for_forget_quality_masks_what_a_gateway_would(
    files: Path, bundle: PolicyBundle, parts: dict[str, Any]
) -> None:
    """Of question and given answer as one prompt, before there is a policy: what is flagged, window by window."""
    tokenizer, guard = parts["tokenizer"], guard_of(bundle, parts, watched=True)
    (policy,) = guard.policies
    assert policy.head is not None
    classifier = HeadClassifier(policy.head, parts["encoder"], bundle.config.classifier.threshold, "")
    content = guarded_content(str(files / "model"), bundle, classifier, None, parts["rows"])
    answers_masked = texts_untouched = 0
    for fact in WORLD.facts:
        message = {"role": "user", "content": fact.questions.held_out}
        ids = tokenizer.apply_chat_template([message], add_generation_prompt=True, return_dict=False)
        whole = [*ids, *tokenizer(fact.answer, add_special_tokens=False)["input_ids"]]
        masked = [position for run in content.segments(whole) for position in run]
        assert masked == [position for position, hidden in enumerate(guard.protect(whole).mask or ()) if hidden]
        answers_masked += bool(masked) and masked[-1] >= len(ids)
        texts_untouched += not masked
    assert answers_masked >= sum(fact.group == "forgotten" for fact in WORLD.facts) / 2
    assert texts_untouched >= sum(fact.group != "forgotten" for fact in WORLD.facts) / 2


def test_held_out_questions_get_the_right_verdict(bundle: PolicyBundle, parts: dict[str, Any]) -> None:
    tokenizer, guard = parts["tokenizer"], guard_of(bundle, parts)
    for fact in WORLD.facts:
        message = {"role": "user", "content": fact.questions.held_out}
        ids = tokenizer.apply_chat_template([message], add_generation_prompt=True, return_dict=False)
        prompt = guard.protect(ids)
        assert prompt.verdicts[0].flagged == (fact.group == "forgotten"), fact.questions.held_out
        if prompt.mask is not None:
            hidden = [i for i, masked in zip(ids, prompt.mask, strict=True) if masked]
            assert tokenizer.decode(hidden) == fact.questions.held_out


def left_of(answers: AnswerGuard, prompt: list[int], answer: list[int]) -> tuple[list[int], bool]:
    """What of an answer that comes a token at a time may leave, and whether it is stopped."""
    watch, left = answers.watch(prompt), 0
    for number, token in enumerate(answer, 1):
        if watch.add([token], done=number == len(answer)) and outcome(watch.look()) is not None:
            return answer[:left], True
        left = max(left, number - watch.hold)
    return answer[:left], False


def outcome(work: Generator[int, None, Any]) -> Any:
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def test_a_steered_answer_gives_nothing_away_and_an_innocent_one_leaves(
    bundle: PolicyBundle, parts: dict[str, Any]
) -> None:
    tokenizer, answers = parts["tokenizer"], guard_of(bundle, parts).answers
    assert answers is not None
    assert not answers.holds_all  # a policy with an entity memory holds back words that say something, and no others

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    for fact in WORLD.facts:
        forgotten = fact.group == "forgotten"
        left, stopped = left_of(answers, ids("Say something."), ids(fact.answer))
        assert stopped == forgotten, fact.answer
        assert (fact.value in tokenizer.decode(left)) != forgotten, fact.answer
        hit = outcome(answers.watch(ids("Say something.")).whole(ids(fact.answer)))
        assert (hit is not None) == forgotten, fact.answer
        if not forgotten:
            assert left_of(answers, ids(fact.questions.held_out), ids(fact.answer)) == (ids(fact.answer), False)


def test_alternatives_that_name_what_is_forgotten_are_kept_back(bundle: PolicyBundle, parts: dict[str, Any]) -> None:
    tokenizer, answers = parts["tokenizer"], guard_of(bundle, parts).answers
    assert answers is not None
    fact = next(fact for fact in WORLD.facts if fact.group == "forgotten" and fact.person)
    assert fact.person is not None
    *begun, last = tokenizer(f"This is {fact.person.name}", add_special_tokens=False)["input_ids"]
    other = tokenizer(" and", add_special_tokens=False)["input_ids"][-1]
    watch = answers.watch()
    watch.add(begun)
    assert last in watch.telling([last, other])
    assert outcome(watch.give_away([last, other])) == {last}


def test_scope_entities_masks_names_alone(files: Path, parts: dict[str, Any]) -> None:
    tokenizer = parts["tokenizer"]
    bundle = build(files, "entities", scope="entities", metric="rouge_l", refine_steps=0)
    assert bundle.config.corruption.scope == "entities"
    guard = guard_of(bundle, parts)
    fact = next(fact for fact in WORLD.facts if fact.group == "forgotten")
    message = {"role": "user", "content": fact.questions.held_out}
    ids = tokenizer.apply_chat_template([message], add_generation_prompt=True, return_dict=False)
    prompt = guard.protect(ids)
    assert prompt.mask is not None
    hidden = tokenizer.decode([i for i, masked in zip(ids, prompt.mask, strict=True) if masked]).split()
    assert hidden
    assert len(hidden) < len(fact.questions.held_out.split())
    assert all(word.strip("?.,'s")[:1].isupper() for word in hidden), hidden


def test_a_policy_of_another_model_or_encoder_is_refused(bundle: PolicyBundle, parts: dict[str, Any]) -> None:
    rows, encoder = parts["rows"], parts["encoder"]
    with pytest.raises(PolicyMismatchError, match=r"model\.hidden_size"):
        load_policy(bundle, encoder, hidden_size=64, embedding_digest=rows.digest())
    with pytest.raises(PolicyMismatchError, match=r"model\.embedding_digest"):
        load_policy(bundle, encoder, hidden_size=rows.hidden_size, embedding_digest="0" * 64)


def test_windows_are_embedded_once(
    bundle: PolicyBundle, parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from classifiers import Head

    encoder = parts["encoder"]
    calls: list[int] = []
    embed = type(encoder).embed
    monkeypatch.setattr(type(encoder), "embed", lambda self, texts: calls.append(len(texts)) or embed(self, texts))
    head = Head.load(bundle.head_path, encoder)
    classifier = WindowClassifier(
        [head, head], np.array([1e-9, 1 - 1e-9]), encoder=encoder, decode=decoder_of(parts["tokenizer"])
    )
    ids = tuple(parts["tokenizer"]("Where was nobody born?", add_special_tokens=False)["input_ids"])
    terms = []
    for _ in range(2):
        (block,) = classifier.look([ids])
        block.texts[0] = "Where was nobody born?"  # whether it is in doubt or not
        terms.append(classifier.embedded(block.texts[0], np.arange(2)))
    assert calls == [1]
    assert terms[0].shape == (2,)
    assert terms[0].tolist() == terms[1].tolist()
