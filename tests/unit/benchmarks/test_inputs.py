import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest
from tiny_model import tiny_tokenizer

from benchmarks import inputs
from benchmarks.inputs import KINDS, Stream, chat_frame, distinct_words, prompts
from benchmarks.prose import paragraphs_of
from benchmarks.served_model import open_tokenizer

SENTENCES = (
    "The lamp in the hall was lit by the keeper, who had come up from the harbour as the wind rose, and she set it "
    "down on the table where the letters of the week were waiting for her to read."
)


@pytest.fixture(autouse=True)
def _little_prose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "prose", lambda cache: [f"{SENTENCES} {number}" for number in range(50)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [20, 300])
def test_a_prompt_has_exactly_the_tokens_asked_for(kind: str, tokens: int) -> None:
    tokenizer = tiny_tokenizer()
    before, after = chat_frame(tokenizer)
    for prompt in itertools.islice(prompts(kind, tokens, tokenizer), 3):
        assert len(prompt) == tokens
        assert prompt[: len(before)] == before
        assert prompt[-len(after) :] == after


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_writes_the_same_and_no_prompt_comes_twice(kind: str) -> None:
    tokenizer = tiny_tokenizer()

    def some(seed: int) -> list[list[int]]:
        return list(itertools.islice(prompts(kind, 120, tokenizer, seed), 12))

    written = some(0)
    assert written == some(0)
    assert written != some(1)
    assert len({tuple(prompt) for prompt in written}) == len(written)


def test_a_model_without_a_chat_template_gets_the_content_alone() -> None:
    tokenizer = tiny_tokenizer(chat_template=False)
    assert chat_frame(tokenizer) == ([], [])
    assert len(next(prompts("code", 40, tokenizer))) == 40


def test_text_is_cut_to_words() -> None:
    assert len(Stream("prose", tiny_tokenizer()).text(90).split()) == 90


def test_invented_names_are_not_invented_again() -> None:
    words = list(itertools.islice(distinct_words(random.Random(0)), 20_000))  # noqa: S311
    assert len(set(words)) == len(words)
    assert all(word.isalpha() and word[0].isupper() for word in words)


def test_prose_is_what_reads_as_sentences() -> None:
    code = (
        "The call is\n>>> f(x)\nand it returns the value that was asked for by the one who called it, as it has to be."
    )
    listing = (
        "Parameters such as alpha, beta, gamma, delta, epsilon, zeta, eta, theta, iota, kappa, lambda, mu, nu, xi, " * 2
    )
    short = "Return the value."
    text = "\n\n".join((short, SENTENCES.replace(". ", ".\n"), code, listing + "."))
    assert list(paragraphs_of(text)) == [SENTENCES]


def test_cjk_keeps_to_what_the_tokenizer_has(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tokenizer:
        def get_vocab(self) -> dict[str, int]:
            return {"中": 0, "国": 1, "a": 2}

    texts: Iterator[str] = KINDS["cjk"](random.Random(0), Tokenizer())  # noqa: S311
    assert set("".join(itertools.islice(texts, 20))) == set("中国。")


def test_the_served_tokenizer_is_as_large_as_real_ones_and_frames_a_chat() -> None:
    tokenizer: Any = open_tokenizer("wordpiece")
    assert len(tokenizer) >= 30_000
    before, after = chat_frame(tokenizer)
    assert tokenizer.decode([*before, *after]) == "[CLS] user : [SEP] assistant :"
