"""Tokenizer, chat template, the loss against transformers' own, and that a few steps teach something."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from demo.lessons import corpus
from demo.models import DemoSettings, world_tokenizer
from demo.tokenizer import encode_conversation
from demo.training import Document, Recipe, answer_loss, documents, train_model
from demo.world import World, WorldSpec

TINY = Recipe(
    vocab_size=600, hidden_size=32, intermediate_size=64, layers=1, heads=2, steps=30, batch_size=8, threads=1
)
WORLD = World.generate(WorldSpec(people=10, general_facts=10))
TOKENIZER = world_tokenizer(WORLD, DemoSettings(world=WORLD.spec, recipe=TINY))
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who wrote this? Ærø 東京"},
    {"role": "assistant", "content": "Nobody."},
]


@pytest.fixture(scope="module")
def docs() -> list[Document]:
    return documents(corpus(WORLD, ("retained", "general")), TOKENIZER)


@given(st.text())
def test_any_text_survives_the_tokenizer(text: str) -> None:
    if "<|" not in text:
        assert TOKENIZER.decode(TOKENIZER.encode(text, add_special_tokens=False)) == text


def test_plain_text_begins_with_bos_and_chat_has_it_once() -> None:
    rendered = TOKENIZER.apply_chat_template(CHAT, tokenize=False)

    assert TOKENIZER.encode("a")[0] == TOKENIZER.bos_token_id
    assert str(rendered).count("<|bos|>") == 1


def test_training_sees_the_ids_the_chat_template_gives() -> None:
    ids, own = encode_conversation(TOKENIZER, CHAT)

    rendered = TOKENIZER.apply_chat_template(CHAT, tokenize=False)
    assert TOKENIZER.encode(str(rendered), add_special_tokens=False) == ids
    assert TOKENIZER.decode([i for i, mine in zip(ids, own, strict=True) if mine]) == "Nobody.<|end|>"


def test_a_prompt_ends_where_the_assistant_begins() -> None:
    prompt = str(TOKENIZER.apply_chat_template(CHAT[:2], tokenize=False, add_generation_prompt=True))

    assert prompt.endswith("<|end|><|assistant|>")


def test_tools_developer_messages_and_tool_results_do_not_break_the_template() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {}}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Call it."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "42"},
    ]

    prompt = TOKENIZER.apply_chat_template(messages, tools=[tool], tokenize=False, add_generation_prompt=True)

    assert prompt == (
        "<|bos|><|system|>Be brief.<|end|><|user|>Call it.<|end|><|assistant|><|end|><|user|>42<|end|><|assistant|>"
    )


def test_an_answer_can_be_continued() -> None:
    prompt = TOKENIZER.apply_chat_template(CHAT, tokenize=False, continue_final_message=True)

    assert str(prompt).endswith("<|assistant|>Nobody.")


def test_the_tokenizer_loads_again_as_it_was(tmp_path: pytest.TempPathFactory) -> None:
    TOKENIZER.save_pretrained(str(tmp_path))
    again = PreTrainedTokenizerFast.from_pretrained(str(tmp_path))

    assert again.get_vocab() == TOKENIZER.get_vocab()
    assert again.chat_template == TOKENIZER.chat_template
    assert (again.bos_token, again.eos_token, again.pad_token) == ("<|bos|>", "<|end|>", "<|pad|>")
    assert again.encode("Ærø") == TOKENIZER.encode("Ærø")


def test_the_loss_is_transformers_own_over_the_predicted_tokens(docs: list[Document]) -> None:
    model = train_model(docs, TOKENIZER, Recipe(**{**vars(TINY), "steps": 1}))
    batch = [min(docs, key=lambda d: len(d.ids)), max(docs, key=lambda d: len(d.ids))]

    total, count = 0.0, 0
    for doc in batch:
        labels = torch.tensor([[i if p else -100 for i, p in zip(doc.ids, doc.predicted, strict=True)]])
        logits = model(input_ids=torch.tensor([doc.ids])).logits
        total += functional.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum").item()
        count += sum(doc.predicted)

    assert answer_loss(model, batch).item() == pytest.approx(total / count, rel=1e-5)


def test_a_few_steps_teach_something_the_same_way_each_time(docs: list[Document]) -> None:
    def run() -> tuple[list[float], torch.Tensor]:
        losses: list[float] = []
        model = train_model(docs, TOKENIZER, TINY, lambda step, loss: losses.append(loss))
        return losses, model.model.embed_tokens.weight.detach()

    threads, random_state = torch.get_num_threads(), torch.get_rng_state()
    losses, weights = run()
    again, same_weights = run()

    assert len(losses) == TINY.steps
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert losses == again
    assert torch.equal(weights, same_weights)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), random_state)


def test_nothing_to_learn_is_an_error() -> None:
    with pytest.raises(ValueError, match="no documents"):
        train_model([], TOKENIZER, TINY)
