"""Hugging Face encoders to the folder that `classifiers.encoders.shared.Encoder` opens. Offline only: needs torch."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from classifiers.encoders.runtime import Session, open_tokenizer
from classifiers.encoders.settings import MODEL_FILE, TOKENIZER_FILE, EncoderSettings, write_settings
from classifiers.encoders.shared import Encoder
from classifiers.errors import EncoderError
from classifiers.export.bert_graph import BertShape, build_bert
from classifiers.export.traced import PROBE, load_model, parity_texts
from storage.whole import whole_folder

__all__ = ["MIN_PARITY_COSINE", "export_encoder"]

MIN_PARITY_COSINE = 0.99


def export_encoder(source: str | Path, out_dir: str | Path, *, source_name: str | None = None) -> Path:
    """Export the Hugging Face encoder in folder `source` as a new folder `out_dir`, with int8 weights.

    Model types bert, roberta and xlm-roberta; mean or cls pooling as 1_Pooling/config.json says (mean without
    one). Embeddings are compared with the torch model's on a few dozen texts. The folder appears whole, under
    its name, or not at all; where another process made it meanwhile, that one stays.

    Raises:
        EncoderError: `source` is no such encoder, or the int8 graph strays from the torch model.
    """
    from transformers import AutoModel

    source, out_dir = Path(source), Path(out_dir)
    shape, max_tokens = _architecture(source)
    if not (source / TOKENIZER_FILE).is_file():
        raise EncoderError(f"{source}: no {TOKENIZER_FILE} (a fast tokenizer is needed)")
    model, _ = load_model(AutoModel, source, f"{source}: transformers cannot load it")
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    try:
        with whole_folder(out_dir, replace=False) as work:
            (work / MODEL_FILE).write_bytes(build_bert(weights, shape).SerializeToString(deterministic=True))
            # Edited as JSON, not saved by the library: its formatting, and so the digest, may change with its version.
            tokenizer = _read_json(source / TOKENIZER_FILE) | {"truncation": None, "padding": None}
            content = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))
            (work / TOKENIZER_FILE).write_text(content, encoding="utf-8")
            write_settings(work, _compare(work, model, source_name or source.name, max_tokens, shape.pooling))
    except OSError as error:
        if not out_dir.exists():
            raise
        try:
            Encoder.open(out_dir)
        except EncoderError:
            raise EncoderError(f"{out_dir}: exists and is not a usable encoder; remove it") from error
    return out_dir


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EncoderError(f"{path}: not readable as JSON; expected a Hugging Face encoder folder") from error
    if not isinstance(data, dict):
        raise EncoderError(f"{path}: expected a JSON object")
    return data


def _architecture(source: Path) -> tuple[BertShape, int]:
    """What its configuration files say of an encoder, and its longest input in tokens."""
    config = _read_json(source / "config.json")
    kind = config.get("model_type")
    if kind not in ("bert", "roberta", "xlm-roberta"):
        raise EncoderError(f"encoders of type {kind} are not supported; bert, roberta and xlm-roberta are")
    positions = config.get("position_embedding_type", "absolute")
    if config.get("hidden_act") != "gelu" or positions != "absolute":
        raise EncoderError("only encoders with gelu activation and absolute positions are supported")
    shape = BertShape(
        layers=int(config["num_hidden_layers"]),
        heads=int(config["num_attention_heads"]),
        layer_norm_epsilon=float(config["layer_norm_eps"]),
        first_position=0 if kind == "bert" else int(config["pad_token_id"]) + 1,
        pooling=_pooling(source / "1_Pooling" / "config.json"),
    )
    limit = int(config.get("max_position_embeddings", 0)) - shape.first_position
    path = source / "sentence_bert_config.json"
    trained = _read_json(path).get("max_seq_length") if path.exists() else None
    return shape, min(limit, int(trained)) if trained else limit


def _pooling(path: Path) -> Literal["mean", "cls"]:
    if not path.exists():
        return "mean"
    config = _read_json(path)
    modes = sorted(key for key, value in config.items() if key.startswith("pooling_mode") and value)
    known: dict[str, Literal["mean", "cls"]]
    known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    if "pooling_mode" in config:  # newer sentence-transformers name the mode instead
        known, modes = {"mean": "mean", "cls": "cls"}, [str(config["pooling_mode"])]
    if len(modes) != 1 or modes[0] not in known:
        raise EncoderError(f"{path}: pooling {', '.join(modes) or 'none'} is not supported; only mean or cls is")
    return known[modes[0]]


def _compare(
    folder: Path, model: Any, source: str, max_tokens: int, pooling: Literal["mean", "cls"]
) -> EncoderSettings:
    """The exported graph against the torch model, one unpadded text at a time, pooled and normalised here."""
    import torch

    tokenizer = open_tokenizer(folder / TOKENIZER_FILE)
    texts = [PROBE, *parity_texts()]
    ids = [tokenizer.encode(text).ids[:max_tokens] for text in texts]
    rows = []
    with torch.inference_mode():
        for text in ids:
            hidden = model(input_ids=torch.tensor([text])).last_hidden_state[0]  # (S, D)
            pooled = hidden[0] if pooling == "cls" else hidden.mean(dim=0)
            rows.append(torch.nn.functional.normalize(pooled, dim=0))
    expected: NDArray[np.float32] = torch.stack(rows).numpy()  # (N, D)
    embeddings = np.stack(Session(folder / MODEL_FILE, "exported graph").run(ids))
    cosine = float((expected * embeddings).sum(axis=1).min())
    if not cosine >= MIN_PARITY_COSINE:
        raise EncoderError(
            f"{source}: the int8 graph is not the torch model: smallest cosine {cosine:.4f} "
            f"over {len(texts)} texts, needed {MIN_PARITY_COSINE}"
        )
    return EncoderSettings(
        source=source,
        dim=expected.shape[1],
        max_tokens=max_tokens,
        pooling=pooling,
        parity_texts=len(texts),
        parity_min_cosine=round(cosine, 5),
        probe_text=PROBE,
        probe_embedding=[round(float(value), 5) for value in expected[0]],
        digest="",
    )
