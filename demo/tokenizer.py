"""The demo models' tokenizer: byte-level BPE over the world's own text, with a chat template.

A conversation is `<|bos|>` and then `<|role|>content<|end|>` for each message, with nothing in between, so
its ids are the ids of its parts put together. `<|end|>` is the end-of-sequence token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from demo.lessons import Message

PAD, BOS, END, SYSTEM, USER, ASSISTANT = SPECIAL_TOKENS = (
    "<|pad|>",
    "<|bos|>",
    "<|end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
)

_CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] in ('system', 'developer') %}{{ '<|system|>' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>' }}"
    "{% else %}{{ '<|user|>' }}{% endif %}"
    "{{ message['content'] or '' }}{{ '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, context_tokens: int) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `vocab_size` tokens that encodes any text and decodes it back unchanged.

    Tool definitions are accepted and ignored by the chat template; a tool's result reads like a user's
    message.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=context_tokens,
    )


def encode_conversation(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message]
) -> tuple[list[int], list[bool]]:
    """Ids as the chat template gives them, and whether each is the assistant's own (its end included)."""
    vocabulary = tokenizer.get_vocab()
    ids, own = [vocabulary[BOS]], [False]
    for message in messages:
        content = tokenizer(message["content"], add_special_tokens=False)["input_ids"]
        part = [vocabulary[f"<|{message['role']}|>"], *content, vocabulary[END]]
        ids += part
        own += [False] + [message["role"] == "assistant"] * (len(part) - 1)
    return ids, own
