"""How MUSE asks, and what it compares: pure functions over texts and a tokenizer.

As muse_bench's `metrics/knowmem.py`, `verbmem.py`, `privleak.py` and `logger.py` do it. Where this differs: decoded
texts keep their spaces as they are, where that code has transformers clean them up (" n't" to "n't").
"""

from collections.abc import Sequence
from typing import Any, Final

from console.errors import first_line
from evaluation.copyright.metrics import rouge_f1
from evaluation.errors import DataError
from evaluation.muse.data import Item

#: Where an answer ends: the model goes on with a question of its own.
STOPS: Final = ("\n\n", "\nQuestion", "Question:")


def open_tokenizer(name: str | None) -> Any:
    """The tokenizer of a model, a folder or hub id, by which texts are cut.

    Raises:
        DataError: none is named, or it cannot be loaded.
    """
    from transformers import AutoTokenizer

    if name is None:
        raise DataError(
            "--tokenizer: is missing; verbmem_f cuts texts by tokens, and a server does not lend its own: give the "
            "folder or hub id of the served model, or measure the other --parts alone"
        )
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise DataError(f"--tokenizer: {name}: cannot be loaded ({first_line(error)}); give the target's") from error


def first_tokens(text: str, tokenizer: Any, count: int) -> str:
    """A text's first tokens; those that the tokenizer puts before every text count too, as in MUSE's code."""
    ids = tokenizer.encode(text)
    return text if len(ids) <= count else str(tokenizer.decode(ids[:count], skip_special_tokens=True))


def question_prompt(shown: Sequence[Item], question: str) -> str:
    """A question after others with their answers, to be answered on the last line."""
    before = "".join(f"Question: {one.given}\nAnswer: {one.wanted}\n\n" for one in shown)
    return f"{before}Question: {question}\nAnswer: "


def cut_answer(text: str) -> str:
    """An answer up to the first of `STOPS`."""
    for stop in STOPS:
        text = text.split(stop)[0]
    return text


def likeness(metric: str, reference: str, answer: str) -> dict[str, float]:
    """ROUGE-L and ROUGE-1 F1, without stemming, under the metric's name: `knowmem`, `knowmem_rouge_1`."""
    f1 = rouge_f1(reference, answer)
    return {metric: f1["rouge_l_f1"], f"{metric}_rouge_1": f1["rouge_1_f1"]}
