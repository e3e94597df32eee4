"""Segments are found by learning the template; no role word is known to the code."""

import pytest

from guard.segments import RenderedText, Template, learn_template

BOS, USER, ASSISTANT, SYSTEM, END = 1, 2, 3, 4, 5
SPECIAL = {BOS, USER, ASSISTANT, SYSTEM, END}
MARKS = {"user": ("<u>", USER), "assistant": ("<a>", ASSISTANT), "system": ("<s>", SYSTEM)}


def chars(text: str) -> list[int]:
    """One id for each character: what a word looks like does not matter here."""
    return [100 + ord(character) for character in text]


def render(messages: list[dict[str, str]], add_generation_prompt: bool, *, header: str = "") -> RenderedText:
    """ChatML-like: a special id, the role word and a newline, the content, an end mark and a newline."""
    text, ids, offsets = "", [], []

    def special(mark: str, token: int) -> None:
        nonlocal text
        offsets.append((len(text), len(text) + len(mark)))
        text += mark
        ids.append(token)

    def plain(part: str) -> None:
        nonlocal text
        for character in part:
            offsets.append((len(text), len(text) + 1))
            text += character
        ids.extend(chars(part))

    special("<bos>", BOS)
    plain(header)
    for message in messages:
        special(*MARKS[message["role"]])
        plain(f"{message['role']}\n{message['content']}")
        special("<end>", END)
        plain("\n")
    if add_generation_prompt:
        special(*MARKS["assistant"])
        plain("assistant\n")
    return text, ids, offsets


def contents(template: Template, ids: list[int]) -> list[str]:
    return ["".join(chr(ids[p] - 100) for p in segment) for segment in template.segments(ids)]


@pytest.fixture(scope="module")
def template() -> Template:
    return learn_template(render, SPECIAL)


def test_contents_of_a_conversation_are_the_segments(template: Template) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where was Mira born?"},
        {"role": "assistant", "content": "In Zelm."},
        {"role": "user", "content": "assistant\nuser"},
    ]
    _, ids, _ = render(messages, True)
    assert contents(template, ids) == [message["content"] for message in messages]


def test_an_order_never_rendered_is_split_all_the_same(template: Template) -> None:
    messages = [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]
    _, ids, _ = render(messages, True)
    assert contents(template, ids) == ["one", "two"]


def test_last_token_is_masked_only_if_it_is_content(template: Template) -> None:
    _, ids, _ = render([{"role": "user", "content": "hi"}], True)
    assert len(ids) - 1 not in template.segments(ids)[-1]
    _, ids, _ = render([{"role": "user", "content": "hi"}], False)
    assert template.segments(ids[:-2])[-1].stop == len(ids) - 2


def test_a_text_prompt_without_template_is_one_segment(template: Template) -> None:
    ids = [BOS, *chars("Mira was born in")]
    assert contents(template, ids) == ["Mira was born in"]


def test_default_header_of_the_template_is_template() -> None:
    learned = learn_template(lambda m, g: render(m, g, header="You are a helpful model."), SPECIAL)
    _, ids, _ = render([{"role": "user", "content": "hi"}], True, header="You are a helpful model.")
    assert contents(learned, ids) == ["hi"]


def test_a_template_that_refuses_a_role_is_learned_from_the_others() -> None:
    def strict(messages: list[dict[str, str]], add_generation_prompt: bool) -> RenderedText:
        if messages[0]["role"] == "system":
            raise RuntimeError("System role not supported")
        return render(messages, add_generation_prompt)

    learned = learn_template(strict, SPECIAL)
    _, ids, _ = render([{"role": "user", "content": "hi"}], True)
    assert contents(learned, ids) == ["hi"]


def test_a_lone_newline_is_no_template_piece() -> None:
    def bare(messages: list[dict[str, str]], add_generation_prompt: bool) -> RenderedText:
        text = "\n".join(message["content"] for message in messages)
        return text, chars(text), [(i, i + 1) for i in range(len(text))]

    learned = learn_template(bare, set())
    assert contents(learned, chars("first\nsecond")) == ["first\nsecond"]


def test_special_token_inside_a_word_splits_it(template: Template) -> None:
    assert contents(template, [BOS, *chars("Har"), END, *chars("ry")]) == ["Har", "ry"]
