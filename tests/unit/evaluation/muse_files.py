"""MUSE's data in small: its sets and columns, in a folder of the form that its own code leaves."""

import json
from collections.abc import Mapping
from pathlib import Path

from tiny_model import tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

Sets = Mapping[str, list[object]]

#: By config and split. The texts of privleak are the same length in words, so that a rule can give them numbers.
SETS: Sets = {
    "verbmem/forget": [
        {"prompt": "It was late and", "gt": "the cat sat on the mat today"},
        {"prompt": "She said that", "gt": "it rains"},
    ],
    "knowmem/forget_qa": [{"question": "Which ferry?", "answer": "Kittiwake"}],
    "knowmem/forget_qa_icl": [
        {"question": "Which town?", "answer": "Ellemouth"},
        {"question": "Which pier?", "answer": "The eastern"},
    ],
    "knowmem/retain_qa": [{"question": "Which river?", "answer": "The Aske"}, {"question": "Who?", "answer": "Lask"}],
    "knowmem/retain_qa_icl": [{"question": "What?", "answer": "Bells"}],
    "privleak/forget": ["alpha is a learned text", "beta is a learned text"],
    "privleak/holdout": ["gamma is an unseen text", "delta is an unseen text"],
}


def write_sets(folder: Path, sets: Sets = SETS, **more: list[object]) -> str:
    """The path of a folder with these sets; `more` are others, named with `__` for the slash."""
    for name, rows in {**sets, **{name.replace("__", "/"): rows for name, rows in more.items()}}.items():
        file = folder / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(rows))
    return str(folder)


def words_tokenizer(folder: Path) -> str:
    """The path of a tokenizer whose tokens are words, with a token that begins every text."""
    texts = ["the cat sat on mat today it rains"]
    words = ["<s>", "<unk>", *dict.fromkeys(word for text in texts for word in text.split())]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _saved(PreTrainedTokenizerFast(tokenizer_object=_beginning(tokenizer, 0), bos_token="<s>"), folder)


def bytes_tokenizer(*, begins: bool) -> PreTrainedTokenizerFast:
    """`tiny_tokenizer`; with `begins` it puts its first token before every text, as Llama's does."""
    tokenizer = tiny_tokenizer()
    if begins:
        _beginning(tokenizer.backend_tokenizer, 1)
    return tokenizer


def _beginning(tokenizer: Tokenizer, number: int) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", number)])
    return tokenizer


def _saved(tokenizer: PreTrainedTokenizerFast, folder: Path) -> str:
    tokenizer.save_pretrained(folder)
    return str(folder)
