"""What LLMU's `unlearn_harm.py` trains on, as the script itself makes it (kevinyaobytedance/llm_unlearn, `utils.py`).

Its format has no token that ends an answer, and its losses begin where two of its lines put them: an answer to forget
after its first token, where the tokenizer joins a space to the word behind it as OPT's does (the prompt is measured
with a trailing space); a prompt with a random answer at the fourth token of the prompt (what is measured is the
tokenizer's result, which has two entries).
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from offline_training.data.encoding import EncodedSet, ExampleEncoder, digest_of
from offline_training.data.rendering import encode
from offline_training.data.tokens import IGNORED, Stream, TokenizedExample
from offline_training.errors import DataError
from sources import SourceError, read_source
from sources.examples import Example

_RANDOM_START = 2
_RETAINED_SHARE = 0.7
_BEST = ("best_answer", "Best Answer", "answer")
_MORE = ("correct_answers", "Correct Answers", "incorrect_answers", "Incorrect Answers")


class ScriptEncoder(ExampleEncoder):
    """Encodes in the script's format. The first target of an example is ignored, and the script's mean counts it."""

    def combine(self, prompt: Example, answer: Example) -> TokenizedExample:
        """A prompt to forget with a random answer; raises as `encode`."""
        return self._from(Example(prompt.prompt.strip(), answer.answer), _RANDOM_START)[0]

    def _combined(self, prompt: Example, answer: Example, *, refuse_long: bool) -> tuple[TokenizedExample, bool]:
        start = len(encode(self.tokenizer, _before(prompt), special=True)) - 1
        example, cut = self._from(Example(prompt.prompt, answer.answer), start)
        if cut and refuse_long:
            raise DataError(f"more tokens than the context's {self.context_tokens}; let --long-examples cut")
        return example, cut

    def _from(self, text: Example, start: int) -> tuple[TokenizedExample, bool]:
        """The example whose loss is of what the positions from `start` on predict; and whether it was cut."""
        if text.answer is None:
            raise DataError("no answer; add one to the row")
        whole = encode(self.tokenizer, _before(text) + text.answer, special=True)
        ids = whole[: self.context_tokens]
        if len(ids) <= start:
            raise DataError(f"the prompt leaves no room for an answer in {self.context_tokens} tokens; shorten it")
        example = TokenizedExample(ids, (IGNORED, *ids[start + 1 :]))
        self._check_ids(example)
        return example, len(whole) > len(ids)


def _before(text: Example) -> str:
    return f"### Question: {text.prompt}\n ### Answer: "


def script_sets(sets: Mapping[Stream, EncodedSet], batch_size: int, seed: int) -> dict[Stream, EncodedSet]:
    """70 % of the retain set, and of the forget set what a pass over those reaches, in order.

    The script starts its forget set anew with each pass over its normal data.
    """
    retain, forget = sets["retain"], sets["forget"]
    kept = np.random.default_rng(seed).permutation(len(retain.examples))[: int(_RETAINED_SHARE * len(retain.examples))]
    retain = _some(retain, sorted(kept.tolist()))
    reached = batch_size * -(-len(retain.examples) // batch_size)
    return {**sets, "retain": retain, "forget": _some(forget, range(min(reached, len(forget.examples))))}


def _some(whole: EncodedSet, numbers: "list[int] | range") -> EncodedSet:
    examples = tuple(whole.examples[number] for number in numbers)
    if not examples:
        raise DataError(f"--{whole.name}: {whole.source}: too few examples; the script takes 70 % of the retain set's")
    texts = tuple(whole.texts[number] for number in numbers)
    return replace(whole, examples=examples, texts=texts, digest=digest_of(examples))


def answer_pool(source: str) -> tuple[Example, ...]:
    """All answers of `--retain`: best, correct and incorrect ones, the latter two in lists or with ; between.

    Raises:
        DataError: the source cannot be read, or has no answers.
    """
    try:
        rows = read_source(source, name="retain", columns=(*_BEST, *_MORE)).rows
    except SourceError as error:
        raise DataError(str(error)) from error
    found: list[str] = []
    for _, row in rows:
        found += [str(row[column]) for column in _BEST if row.get(column)][:1]
        for column in _MORE:
            more = row.get(column) or ""
            listed = more if isinstance(more, list) else str(more).split(";")
            found += [str(one).strip() for one in listed]
    pool = tuple(Example("", answer) for answer in found if answer)
    if not pool:
        raise DataError(f"--retain: {source}: no answers to draw random ones from; give answer or best_answer")
    return pool
