"""Prompts and answers in ids, through the chat templates of several model families."""

import pytest
from chat_tokenizers import (
    CHATML,
    INST,
    NO_PREFIX,
    SPACE_AFTER,
    THINKING,
    TRIMMING,
    WORDS,
    byte_tokenizer,
    sentence_tokenizer,
)
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from classifiers import Example
from demo.tokenizer import train_tokenizer
from offline_training.data.encoding import ExampleEncoder
from offline_training.errors import DataError

QUESTION, ANSWER = "Who is Ann?", " Ann is a nurse. "
BYTES = {name: byte_tokenizer(template) for name, template in {"chatml": CHATML, "inst": INST, "words": WORDS}.items()}
CONTENT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40).filter(str.strip)


def encoder(tokenizer: PreTrainedTokenizerFast, **options: object) -> ExampleEncoder:
    return ExampleEncoder(tokenizer, context_tokens=512, **options)  # type: ignore[arg-type]


def texts(tokenizer: PreTrainedTokenizerFast, **options: object) -> tuple[str, str]:
    """What the ids of the prompt, and the targets, decode to."""
    example = encoder(tokenizer, **options).encode(Example(QUESTION, ANSWER))
    return (
        tokenizer.decode(example.ids[: example.prompt_length], clean_up_tokenization_spaces=False),
        tokenizer.decode(example.targets, clean_up_tokenization_spaces=False),
    )


def served_ids(tokenizer: PreTrainedTokenizerFast, prompt: str) -> tuple[int, ...]:
    """The library's own rendering and encoding of a chat request."""
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)
    return tuple(rendered["input_ids"])


@pytest.mark.parametrize(
    ("template", "prompt", "answer"),
    [
        (CHATML, "<|im_start|>user\nWho is Ann?<|im_end|>\n<|im_start|>assistant\n", " Ann is a nurse. <|im_end|>"),
        (INST, "<s>[INST] Who is Ann? [/INST]", " Ann is a nurse. </s>"),
        (TRIMMING, "<|im_start|>user\n\nWho is Ann?<|eot|><|im_start|>assistant\n\n", "Ann is a nurse.<|eot|>"),
        (
            THINKING,
            "<|im_start|>user\nWho is Ann?<|im_end|>\n<|im_start|>assistant\n",
            "<think>\n\n</think>\n\n Ann is a nurse. <|im_end|>",
        ),
        (None, "Who is Ann?", "  Ann is a nurse. </s>"),
    ],
    ids=["chatml", "inst", "trimming", "thinking", "none"],
)
def test_an_answer_is_all_that_follows_the_served_prompt_up_to_the_end_of_turn(
    template: str | None, prompt: str, answer: str
) -> None:
    assert texts(byte_tokenizer(template)) == (prompt, answer)


def test_a_turn_that_no_token_ends_is_ended_by_eos() -> None:
    """The rendered newline is not what generation stops at."""
    assert texts(byte_tokenizer(WORDS)) == ("user: Who is Ann?\nassistant:", "  Ann is a nurse. </s>")


@pytest.mark.parametrize("name", BYTES)
@given(prompt=CONTENT, answer=CONTENT)
def test_prompt_ids_are_those_served_and_nothing_of_the_answer_is_lost(name: str, prompt: str, answer: str) -> None:
    tokenizer = BYTES[name]
    example = encoder(tokenizer).encode(Example(prompt, answer))
    assert example.ids[: example.prompt_length] == served_ids(tokenizer, prompt)
    assert example.ids[example.prompt_length :] == example.targets
    said = tokenizer.decode(example.targets, clean_up_tokenization_spaces=False)
    assert answer.strip() in said
    assert example.targets[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>" if name == "chatml" else "</s>")
    assert said.count("<|im_end|>" if name == "chatml" else "</s>") == 1 + answer.count("</s>")


def test_plain_text_begins_with_the_tokens_the_tokenizer_adds() -> None:
    tokenizer = byte_tokenizer(bos=True)
    example = encoder(tokenizer).encode(Example("Who?", "Ann"))
    assert example.ids == (
        *tokenizer("Who?")["input_ids"],
        *tokenizer(" Ann", add_special_tokens=False)["input_ids"],
        1,
    )
    assert example.ids[0] == 0
    assert example.targets == example.ids[-5:]


def test_a_token_over_the_border_is_not_used() -> None:
    """The whole text would be encoded with " a" as one token, but a server's prompt ends in the space."""
    tokenizer = byte_tokenizer(SPACE_AFTER, merged="as")
    space_a = tokenizer.convert_tokens_to_ids("Ġa")
    assert space_a in tokenizer("assistant: ann", add_special_tokens=False)["input_ids"]
    example = encoder(tokenizer).encode(Example("Who?", "ann"))
    assert example.ids[: example.prompt_length] == served_ids(tokenizer, "Who?")
    assert tokenizer.decode(example.targets) == "ann</s>"


def test_sentencepiece_gets_no_second_space() -> None:
    tokenizer = sentence_tokenizer(INST)
    example = encoder(tokenizer).encode(Example("Who?", "Ann"))
    tokens = tokenizer.convert_ids_to_tokens(example.targets)
    assert tokens[0] == "▁Ann"
    assert tokens[-1] == "</s>"
    plain = encoder(sentence_tokenizer()).encode(Example("Who?", "Ann"))
    assert tokenizer.convert_ids_to_tokens(plain.targets) == ["▁Ann", "</s>"]
    after_space = encoder(sentence_tokenizer(SPACE_AFTER)).encode(Example("Who?", "Ann"))
    assert tokenizer.convert_ids_to_tokens(after_space.targets) == ["Ann", "</s>"]


def test_the_demo_model_is_trained_as_it_is_served() -> None:
    tokenizer = train_tokenizer([QUESTION, ANSWER] * 5, vocab_size=300, context_tokens=128)
    example = encoder(tokenizer).encode(Example(QUESTION, "Ann is a nurse."))
    assert example.ids[: example.prompt_length] == served_ids(tokenizer, QUESTION)
    assert tokenizer.decode(example.targets) == "Ann is a nurse.<|end|>"


def test_a_system_message_stands_in_every_prompt() -> None:
    prompt, answer = texts(byte_tokenizer(CHATML), system_prompt="Be brief.")
    assert prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho")
    assert answer == " Ann is a nurse. <|im_end|>"


def test_parts_and_whole_agree() -> None:
    for tokenizer in (*BYTES.values(), byte_tokenizer(bos=True)):
        made = encoder(tokenizer)
        ann, bob = Example(QUESTION, "A nurse."), Example("And Bob?", "A cook.")
        combined = made.combine(ann, bob)
        assert combined.ids == (*made.prompt_ids(QUESTION), *made.answer_ids("A cook."))
        assert combined.targets == made.encode(bob).targets != made.encode(ann).targets


@pytest.mark.parametrize(
    ("tokenizer", "options", "message"),
    [
        (byte_tokenizer(NO_PREFIX), {}, "--model: .*does not begin with that of the prompt: '<think>"),
        (byte_tokenizer(None, eos=False), {}, "--model: its tokenizer has neither chat template nor eos_token"),
        (byte_tokenizer(WORDS, eos=False), {}, "--model: its chat template ends no assistant turn with a token"),
        (byte_tokenizer(INST), {"system_prompt": "x"}, "--system-prompt: .*Only user and assistant roles"),
        (byte_tokenizer(TRIMMING), {"system_prompt": "x y"}, "--system-prompt: the chat template drops it"),
        (byte_tokenizer(None), {"system_prompt": "x"}, "--system-prompt: the model has no chat template"),
        (
            byte_tokenizer(CHATML.replace("m['content']", "m['content'] | upper")),
            {},
            "--model: the chat template does not render",
        ),
        (
            byte_tokenizer(CHATML.replace("<|im_end|>\\n'", "' + (m['content'] | length) | string + '<|im_end|>'")),
            {},
            "--model: the chat template ends an assistant's turn differently",
        ),
        (byte_tokenizer("{{ raise_exception('one\ntwo') }}"), {}, r"--model: .*\(one\)"),
    ],
)
def test_what_cannot_be_trained_through_is_refused_at_once(
    tokenizer: PreTrainedTokenizerFast, options: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=f"^{message}") as caught:
        encoder(tokenizer, **options)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_a_vocabulary_is_none() -> None:
    """What the library makes up for a checkpoint of some architectures that has no tokenizer files."""
    empty = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token="</s>")
    with pytest.raises(DataError, match="--model: its tokenizer gives no tokens"):
        encoder(empty)
