"""Hugging Face encoders to the folder that `classifiers.encoders.shared.Encoder` opens. Offline only: needs torch."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifiers.encoders.shared import (
    MODEL_FILE,
    SETTINGS_FILE,
    TOKENIZER_FILE,
    Encoder,
    EncoderSettings,
    encoder_digest,
)
from classifiers.errors import EncoderError
from classifiers.export.bert_graph import BertShape, build_bert
from sources.everyday import general_prompts

MIN_PARITY_COSINE = 0.99
_PROBE = "What is the capital of France, and who wrote the book on the table?"


def export_encoder(source: str | Path, out_dir: str | Path, *, source_name: str | None = None) -> Path:
    """Export the Hugging Face encoder in folder `source` as a new folder `out_dir`, with int8 weights.

    Model types bert, roberta and xlm-roberta; mean or cls pooling as 1_Pooling/config.json says (mean without
    one). Embeddings are compared with the torch model's on a few dozen texts. The folder appears whole, under
    its name, or not at all; where another process made it meanwhile, that one stays.

    Raises:
        EncoderError: `source` is no such encoder, or the int8 graph strays from the torch model.
    """
    source, out_dir = Path(source), Path(out_dir)
    config = _read_json(source / "config.json")
    pooling = _pooling(source)
    max_tokens = _max_tokens(source, config)
    if not (source / TOKENIZER_FILE).is_file():
        raise EncoderError(f"{source}: no {TOKENIZER_FILE} (a fast tokenizer is needed)")
    model = _load_torch_model(source)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}-", dir=out_dir.parent))
    try:
        _write_graph(model, _shape(config, pooling), work / MODEL_FILE)
        _write_tokenizer(source / TOKENIZER_FILE, work / TOKENIZER_FILE)
        _write_settings(model, work, source_name or source.name, max_tokens, pooling)
        work.chmod(0o755)
        _publish(work, out_dir)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return out_dir


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EncoderError(f"{path}: not readable as JSON; expected a Hugging Face encoder folder") from error
    if not isinstance(data, dict):
        raise EncoderError(f"{path}: expected a JSON object")
    return data


def _pooling(source: Path) -> str:
    path = source / "1_Pooling" / "config.json"
    if not path.exists():
        return "mean"
    config = _read_json(path)
    modes = sorted(key for key, value in config.items() if key.startswith("pooling_mode") and value)
    known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    if "pooling_mode" in config:  # newer sentence-transformers name the mode instead
        known, modes = {"mean": "mean", "cls": "cls"}, [str(config["pooling_mode"])]
    if len(modes) != 1 or modes[0] not in known:
        raise EncoderError(f"{path}: pooling {', '.join(modes) or 'none'} is not supported; only mean or cls is")
    return known[modes[0]]


def _first_position(config: dict[str, Any]) -> int:
    return 0 if config["model_type"] == "bert" else int(config["pad_token_id"]) + 1


def _max_tokens(source: Path, config: dict[str, Any]) -> int:
    limit = int(config.get("max_position_embeddings", 0))
    if config.get("model_type") in ("roberta", "xlm-roberta"):
        limit -= _first_position(config)
    path = source / "sentence_bert_config.json"
    trained = _read_json(path).get("max_seq_length") if path.exists() else None
    return min(limit, int(trained)) if trained else limit


def _shape(config: dict[str, Any], pooling: str) -> BertShape:
    kind = config.get("model_type")
    if kind not in ("bert", "roberta", "xlm-roberta"):
        raise EncoderError(f"encoders of type {kind} are not supported; bert, roberta and xlm-roberta are")
    positions = config.get("position_embedding_type", "absolute")
    if config.get("hidden_act") != "gelu" or positions != "absolute":
        raise EncoderError("only encoders with gelu activation and absolute positions are supported")
    return BertShape(
        layers=int(config["num_hidden_layers"]),
        heads=int(config["num_attention_heads"]),
        layer_norm_epsilon=float(config["layer_norm_eps"]),
        first_position=_first_position(config),
        pooling=pooling,
    )


def _load_torch_model(source: Path) -> Any:
    from transformers import AutoModel
    from transformers.utils import logging as untyped_logging

    logging: Any = untyped_logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # a pooler that nobody uses is reported as missing or unexpected
    logging.disable_progress_bar()
    try:
        return AutoModel.from_pretrained(source, local_files_only=True, dtype="float32").eval()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise EncoderError(f"{source}: transformers cannot load it ({str(error).splitlines()[0][:200]})") from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _write_graph(model: Any, shape: BertShape, path: Path) -> None:
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    path.write_bytes(build_bert(weights, shape).SerializeToString(deterministic=True))


def _write_tokenizer(source: Path, path: Path) -> None:
    # Edited as JSON, not saved by the library: its formatting, and so the digest, may change with its version.
    tokenizer = _read_json(source) | {"truncation": None, "padding": None}
    path.write_text(json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


def _write_settings(model: Any, folder: Path, source: str, max_tokens: int, pooling: str) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    texts = [_PROBE, *_parity_texts()]
    ids = [tokenizer.encode(text).ids[:max_tokens] for text in texts]
    expected = _torch_embeddings(model, ids, pooling)
    found = _graph_embeddings(folder / MODEL_FILE, ids)
    cosine = float((expected * found).sum(axis=1).min())
    if not cosine >= MIN_PARITY_COSINE:
        raise EncoderError(
            f"{source}: the int8 graph is not the torch model: smallest cosine {cosine:.4f} "
            f"over {len(texts)} texts, needed {MIN_PARITY_COSINE}"
        )
    dim = expected.shape[1]
    settings = EncoderSettings(
        source=source,
        dim=dim,
        max_tokens=max_tokens,
        pooling="cls" if pooling == "cls" else "mean",
        parity_texts=len(texts),
        parity_min_cosine=round(cosine, 5),
        probe_text=_PROBE,
        probe_embedding=[round(float(value), 5) for value in expected[0]],
        digest=encoder_digest(folder, dim=dim, max_tokens=max_tokens, pooling=pooling),
    )
    (folder / SETTINGS_FILE).write_text(settings.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _parity_texts() -> list[str]:
    """Short prompts, and longer texts joined from them."""
    prompts = general_prompts()
    return [*prompts[:32], *(" ".join(prompts[start : start + 8]) for start in range(0, 64, 8))]


def _torch_embeddings(model: Any, ids: list[list[int]], pooling: str) -> NDArray[np.float32]:
    """Reference embeddings (N, D): one unpadded text at a time, pooled and normalised here."""
    import torch

    rows = []
    with torch.inference_mode():
        for text in ids:
            hidden = model(input_ids=torch.tensor([text])).last_hidden_state[0]  # (S, D)
            pooled = hidden[0] if pooling == "cls" else hidden.mean(dim=0)
            rows.append(torch.nn.functional.normalize(pooled, dim=0))
    stacked: NDArray[np.float32] = torch.stack(rows).numpy()
    return stacked


def _graph_embeddings(path: Path, ids: list[list[int]]) -> NDArray[np.float32]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"input_ids": np.array([text])})[0] for text in ids])


def _publish(work: Path, out_dir: Path) -> None:
    try:
        work.rename(out_dir)
    except OSError as error:
        try:
            Encoder.open(out_dir)
        except EncoderError:
            raise EncoderError(f"{out_dir}: exists and is not a usable encoder; remove it") from error
