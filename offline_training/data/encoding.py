"""One model's view of examples: token ids, and a target at each position of an answer or text."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from offline_training.data.rendering import ConversationRenderer, encode, leading_special_ids
from offline_training.data.tokens import TokenizedExample, answered
from offline_training.errors import DataError
from sources import flag_of
from sources.examples import Example


@dataclass(frozen=True)
class EncodedSet:
    """N examples as a model sees them."""

    name: str
    """`forget`, `retain`, `idk` …: the flag that gave it."""
    source: str
    """Path or hub id, as given."""
    digest: str
    """SHA-256 over the token ids and targets of all examples, in order, as hexadecimal digits."""
    examples: tuple[TokenizedExample, ...]
    texts: tuple[Example, ...]
    """Parallel to `examples`. Plain text has the window's text as prompt and no answer."""
    cut: int
    """How many were longer than the context: answers that lost tokens at their end, or texts that were split into
    windows (which loses none)."""
    notes: tuple[str, ...] = ()
    """What a person should be told: what was cut, split or passed over, one line each."""
    whole_texts: tuple[Example, ...] = ()
    """Of plain text: the texts before they were split; what is compared with the other set."""

    @cached_property
    def has_answers(self) -> bool:
        """False for plain text: it has no questions, so none can get another answer."""
        return all(text.answer is not None for text in self.texts)


class ExampleEncoder:
    """Examples -> token ids and targets, for one model's tokenizer.

    Args:
        tokenizer: a transformers tokenizer. Nothing asks it for a pad token.
        context_tokens: the longest sequence, at least 2.
        long_examples: what becomes of a longer one: `cut` drops tokens from the end of the answer (the token that
            ends it is the first to go), `refuse` raises. Plain text is always split into windows, and loses nothing.
        system_prompt: system message of every conversation.
        vocab_size: rows of the model's embedding table; None: ids are not compared with it.

    Raises:
        DataError: the context is too short, or the tokenizer or its chat template cannot be trained through (see
            `ConversationRenderer`).
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        context_tokens: int,
        long_examples: Literal["cut", "refuse"] = "cut",
        system_prompt: str | None = None,
        vocab_size: int | None = None,
    ) -> None:
        if context_tokens < 2:
            raise DataError(
                f"--context-tokens: {context_tokens} is too short for a prompt and an answer; give 2 or more"
            )
        if not encode(tokenizer, "a", special=False):
            raise DataError(
                "--model: its tokenizer gives no tokens for text; is tokenizer.json missing from its folder?"
            )
        self.tokenizer = tokenizer
        self.context_tokens = context_tokens
        self._refuses_long = long_examples == "refuse"
        self._vocab_size = vocab_size
        self._renderer = ConversationRenderer(tokenizer, system_prompt)

    def prompt_ids(self, prompt: str) -> tuple[int, ...]:
        """Ids of the prompt: exactly those of a served chat request, or of plain text without a chat template."""
        return self._renderer.prompt_ids(prompt)

    def answer_ids(self, answer: str) -> tuple[int, ...]:
        """Ids of the answer with the tokens that end an assistant's turn, uncut."""
        return self._renderer.answer_ids(answer)

    def encode(self, example: Example) -> TokenizedExample:
        """The prompt and its answer, at most `context_tokens` ids; the answer's are the targets.

        Raises:
            DataError: there is no answer, the prompt leaves no room for one, the example is too long and long ones
                are refused, or an id is not among the model's embeddings.
        """
        return self._combined(example, example, refuse_long=self._refuses_long)[0]

    def combine(self, prompt: Example, answer: Example) -> TokenizedExample:
        """The first's prompt with the second's answer (random mismatch).

        A pair that is too long is always cut: pairs are drawn in mid-training, where it is too late to refuse.

        Raises:
            DataError: as `encode`, save for the length.
        """
        return self._combined(prompt, answer, refuse_long=False)[0]

    def encode_set(self, name: str, source: str, examples: Sequence[Example]) -> EncodedSet:
        """Examples with answers as a set.

        Raises:
            DataError: as `encode`, with flag, source and the example's number from 1; or there are no examples.
        """
        flag, encoded, cut = flag_of(name), [], 0
        for number, text in enumerate(examples, 1):
            try:
                example, was_cut = self._combined(text, text, refuse_long=self._refuses_long)
            except DataError as error:
                if str(error).startswith("--"):  # another flag's fault, whatever the example
                    raise
                raise DataError(f"{flag}: {source}: example {number}: {error}") from error
            encoded.append(example)
            cut += was_cut
        note = f"{flag}: {cut} of {len(encoded)} examples were longer than {self.context_tokens} tokens: cut"
        return _encoded_set(name, source, encoded, examples, cut, (f"{note} at the end of the answer",) if cut else ())

    def encode_text(self, name: str, source: str, texts: Sequence[str]) -> EncodedSet:
        """Plain text as a set: windows of at most `context_tokens` ids, never over the border of two texts.

        A window begins with what the tokenizer puts before any text (mostly one token), or where that is nothing with
        the last token of the window before. All after that are targets: so each token of a text is one exactly once,
        save the very first where nothing stands before it.

        Raises:
            DataError: a text has too few tokens for a window, or there are no texts.
        """
        flag, lead = flag_of(name), leading_special_ids(self.tokenizer)
        if len(lead) >= self.context_tokens:
            raise DataError(f"--context-tokens: {self.context_tokens} leaves no room for text; give more")
        step = self.context_tokens - (len(lead) or 1)
        encoded: list[TokenizedExample] = []
        split = 0
        for number, text in enumerate(texts, 1):
            ids = encode(self.tokenizer, text, special=False)
            starts = range(0 if lead else 1, len(ids), step)
            parts = [(lead or ids[start - 1 : start], ids[start : start + step]) for start in starts]
            windows = [TokenizedExample((*before, *new), new) for before, new in parts]
            if not windows:
                raise DataError(f"{flag}: {source}: text {number}: fewer than two tokens; give a longer text")
            encoded += windows
            split += len(windows) > 1
        shown: list[Example] = []
        for example in encoded:
            self._check_ids(example)
            text_ids = list(example.ids[len(lead) :])
            shown.append(
                Example(self.tokenizer.decode(text_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
            )
        note = f"{flag}: {split} of {len(texts)} texts were longer than {self.context_tokens} tokens: split"
        notes = (f"{note} into windows, {len(encoded)} in all",) if split else ()
        encoded_set = _encoded_set(name, source, encoded, shown, split, notes)
        return replace(encoded_set, whole_texts=tuple(Example(text) for text in texts))

    def _combined(self, prompt: Example, answer: Example, *, refuse_long: bool) -> tuple[TokenizedExample, bool]:
        """The example, and whether it was cut."""
        if answer.answer is None:
            raise DataError("no answer; add one to the row")
        prompt_ids, answer_ids = self._renderer.conversation(prompt.prompt, answer.answer)
        room = self.context_tokens - len(prompt_ids)
        if room < 1:
            raise DataError(
                f"the prompt alone has {len(prompt_ids)} tokens and the context {self.context_tokens}; shorten it, or "
                "raise --context-tokens"
            )
        too_long = len(answer_ids) > room
        if too_long and refuse_long:
            raise DataError(
                f"{len(prompt_ids) + len(answer_ids)} tokens are more than the context's {self.context_tokens}; "
                "shorten it, raise --context-tokens, or let --long-examples cut"
            )
        example = answered(prompt_ids, answer_ids[:room])
        self._check_ids(example)
        return example, too_long

    def _check_ids(self, example: TokenizedExample) -> None:
        largest = max(example.ids)
        if self._vocab_size is not None and largest >= self._vocab_size:
            token = self.tokenizer.convert_ids_to_tokens(largest)
            raise DataError(
                f"--model: its tokenizer gives id {largest} ({token!r}) but it has {self._vocab_size} embeddings; "
                "resize them or use the tokenizer it was trained with"
            )


def _encoded_set(
    name: str,
    source: str,
    examples: Sequence[TokenizedExample],
    texts: Sequence[Example],
    cut: int,
    notes: tuple[str, ...],
) -> EncodedSet:
    if not examples:
        raise DataError(f"{flag_of(name)}: {source}: no examples; give at least one")
    return EncodedSet(name, source, digest_of(examples), tuple(examples), tuple(texts), cut, notes)


def digest_of(examples: Iterable[TokenizedExample]) -> str:
    """SHA-256 of ids and targets, each list after its length, as little-endian 64-bit integers."""
    digest = hashlib.sha256()
    for example in examples:
        numbers = (len(example.ids), *example.ids, len(example.targets), *example.targets)
        digest.update(np.array(numbers, "<i8").tobytes())
    return digest.hexdigest()
