"""What the guard needs of a served model's Hugging Face tokenizer: decoding, and its chat template."""

from collections.abc import Callable, Sequence
from typing import Any

from guard.segments import Message, RenderedText, Template, learn_template

__all__ = ["decoder_of", "template_of"]


def decoder_of(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    """Token ids -> text for the classifier, special tokens left out, spaces as they were."""

    def decode(token_ids: Sequence[int]) -> str:
        text: str = tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    return decode


def template_of(tokenizer: Any, chat_template: str | None = None) -> Template:
    """Learn which tokens the chat template puts around content.

    Args:
        tokenizer: a transformers tokenizer. One without offsets ("slow") gives a template of special ids only.
        chat_template: overrides the tokenizer's own.
    """
    special = {int(i) for i in tokenizer.all_special_ids}
    special |= {int(i) for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
    has_template = bool(chat_template or getattr(tokenizer, "chat_template", None))
    if not (has_template and getattr(tokenizer, "is_fast", False)):
        return learn_template(None, special)

    def render(messages: list[Message], add_generation_prompt: bool) -> RenderedText:
        text = tokenizer.apply_chat_template(
            messages, chat_template=chat_template, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return text, list(encoded["input_ids"]), [tuple(span) for span in encoded["offset_mapping"]]

    return learn_template(render, special)
