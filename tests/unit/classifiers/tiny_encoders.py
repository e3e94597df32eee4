"""Random classifiers of texts and of tokens, of four architectures, with the tokenizers of their families."""

import functools
import warnings
from pathlib import Path
from typing import Any

from classifiers import general_prompts

ARCHITECTURES = ("bert", "roberta", "deberta-v2", "modernbert")
_SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_SPECIALS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]


@functools.cache
def trained_tokenizer(architecture: str) -> str:
    """tokenizer.json as the family has it: word pieces, byte-level BPE or sentence pieces."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    trainer: Any
    if architecture == "bert":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=700, special_tokens=_SPECIALS, show_progress=False)
    elif architecture == "deberta-v2":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=700, special_tokens=_SPECIALS, unk_token="[UNK]", show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=700, special_tokens=_SPECIALS, initial_alphabet=alphabet, show_progress=False
        )
    tokenizer.train_from_iterator(general_prompts()[:300], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return tokenizer.to_str(pretty=True)


def write_tokenizer(architecture: str, folder: Path) -> int:
    """Write tokenizer.json; returns the size of its vocabulary."""
    from tokenizers import Tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(trained_tokenizer(architecture), encoding="utf-8")
    return Tokenizer.from_str(trained_tokenizer(architecture)).get_vocab_size()


def write_tiny(architecture: str, folder: Path, *, positions: int = 128, std: float = 0.2, **config: Any) -> Path:
    """A Hugging Face folder; `std` spreads its random weights so that texts score differently."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    own: dict[str, dict[str, Any]] = {
        "bert": {},
        "roberta": {"type_vocab_size": 1},
        "deberta-v2": {
            "relative_attention": True,
            "position_buckets": 16,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
        "modernbert": {
            "local_attention": 16,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "cls_token_id": 1,
            "sep_token_id": 2,
        },
    }
    settings: dict[str, Any] = {
        **_SIZE, **own[architecture], "vocab_size": write_tokenizer(architecture, folder), "pad_token_id": 0,
        "max_position_embeddings": positions, "initializer_range": std, "num_labels": 2,
    }  # fmt: skip
    torch.manual_seed(0)
    made = AutoConfig.for_model(architecture, **(settings | config))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # transformers' DeBERTa uses torch.jit
        AutoModelForSequenceClassification.from_config(made).save_pretrained(folder)
    return folder


def tiny_token_config(architecture: str, size: int, **changes: Any) -> Any:
    """Of a recogniser of three kinds of entities, for a vocabulary of `size`."""
    from transformers import AutoConfig

    labels = {0: "B-PER", 1: "O", 2: "I-PER", 3: "B-LOC"}
    settings: dict[str, Any] = {
        **_SIZE, "vocab_size": size, "max_position_embeddings": 160, "initializer_range": 0.1, "pad_token_id": 0,
        "id2label": labels, "label2id": {name: index for index, name in labels.items()},
    }  # fmt: skip
    return AutoConfig.for_model(architecture, **(settings | changes))


def write_tiny_tokens(architecture: str, folder: Path, **changes: Any) -> Path:
    """A Hugging Face folder of a random token classifier."""
    import torch
    from transformers import AutoModelForTokenClassification

    torch.manual_seed(0)
    config = tiny_token_config(architecture, write_tokenizer(architecture, folder), **changes)
    AutoModelForTokenClassification.from_config(config).save_pretrained(folder)
    return folder
