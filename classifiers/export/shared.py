"""Hugging Face encoders to the folder that `classifiers.encoders.shared.Encoder` opens. Offline only: needs torch.

The encoder, which must be BERT-like, becomes one ONNX graph with int8 weights, written node by node. Input
`input_ids` (B, S) int64, output `embedding` (B, D) float32, L2-normalised rows. There is no attention mask: callers
batch texts of equal length only, so nothing is ever padded.

Other models are traced (`classifiers.export.traced`). This graph stays because its bytes are in the digest of every
shared encoder, which heads and policies are bound to.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from classifiers.encoders.runtime import Session, open_tokenizer
from classifiers.encoders.settings import MODEL_FILE, TOKENIZER_FILE, EncoderSettings, write_settings
from classifiers.encoders.shared import Encoder
from classifiers.errors import EncoderError
from classifiers.export.int8 import CONTRIB, GraphBuilder
from classifiers.export.traced import PROBE, load_model, parity_texts
from storage.whole import whole_folder


@dataclass(frozen=True)
class BertShape:
    """What the graph needs beside weights. `first_position` is 0 for BERT, pad id + 1 for RoBERTa."""

    layers: int
    heads: int
    layer_norm_epsilon: float
    first_position: int
    pooling: Literal["mean", "cls"]


def build_bert(weights: Mapping[str, NDArray[np.float32]], shape: BertShape) -> onnx.ModelProto:
    """The graph of a BERT or RoBERTa model; `weights` are named as in transformers' `BertModel.state_dict()`.

    Raises:
        EncoderError: a weight the architecture needs is not there.
    """
    graph = _Bert(weights, shape)
    try:
        hidden = graph.embeddings()  # (B, S, D)
        for layer in range(shape.layers):
            hidden = graph.layer(hidden, f"encoder.layer.{layer}.")
    except KeyError as error:
        raise EncoderError(f"not a BERT-like encoder: weight {error.args[0]} is missing") from error
    if shape.pooling == "cls":
        pooled = graph.add("Gather", hidden, graph.constant(np.array(0)), axis=1)
    else:
        pooled = graph.add("ReduceMean", hidden, graph.constant(np.array([1])), keepdims=0)
    graph.nodes.append(helper.make_node("LpNormalization", [pooled], ["embedding"], axis=-1, p=2))
    dim = int(weights["embeddings.word_embeddings.weight"].shape[1])
    return helper.make_model(
        helper.make_graph(
            graph.nodes,
            "encoder",
            [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["B", "S"])],
            [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["B", dim])],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(CONTRIB, 1)],
        ir_version=9,
        producer_name="eco-gateway",
    )


class _Bert(GraphBuilder):
    """The parts of the architecture; `hidden` is the name of a tensor (B, S, D)."""

    def __init__(self, weights: Mapping[str, NDArray[np.float32]], shape: BertShape) -> None:
        super().__init__()
        self._weights = weights
        self._shape = shape

    def embeddings(self) -> str:
        words = self.lookup(self._weights["embeddings.word_embeddings.weight"], "input_ids")
        positions = self._weights["embeddings.position_embeddings.weight"][self._shape.first_position :]
        positions = positions + self._weights["embeddings.token_type_embeddings.weight"][0]
        length = self.add("Shape", "input_ids", start=1, end=2)
        zero = self.constant(np.array([0]))
        positioned = self.add("Slice", self.constant(positions), zero, length, zero)  # (S, D)
        return self._norm(self.add("Add", words, positioned), "embeddings.LayerNorm")

    def layer(self, hidden: str, prefix: str) -> str:
        attention = [f"{prefix}attention.self.{name}." for name in ("query", "key", "value")]
        joint = np.concatenate([self._weights[f"{name}weight"] for name in attention])  # (3D, D)
        bias = np.concatenate([self._weights[f"{name}bias"] for name in attention])
        parts = self.add_many("Split", self.product(hidden, joint.T), outputs=3, axis=-1, num_outputs=3)
        mixed = self.add("MultiHeadAttention", *parts, self.constant(bias), num_heads=self._shape.heads)
        hidden = self._residual(mixed, hidden, f"{prefix}attention.output.")
        up = self.product(hidden, self._weights[f"{prefix}intermediate.dense.weight"].T)
        active = self.add("BiasGelu", up, self.constant(self._weights[f"{prefix}intermediate.dense.bias"]))
        return self._residual(active, hidden, f"{prefix}output.")

    def _residual(self, inner: str, outer: str, prefix: str) -> str:
        # Add and LayerNormalization apart: ONNX Runtime's fused SkipLayerNormalization is slower on CPU.
        projected = self.product(inner, self._weights[f"{prefix}dense.weight"].T)
        biased = self.add("Add", projected, self.constant(self._weights[f"{prefix}dense.bias"]))
        return self._norm(self.add("Add", biased, outer), f"{prefix}LayerNorm")

    def _norm(self, hidden: str, prefix: str) -> str:
        scale, bias = self.constant(self._weights[f"{prefix}.weight"]), self.constant(self._weights[f"{prefix}.bias"])
        epsilon = self._shape.layer_norm_epsilon
        return self.add("LayerNormalization", hidden, scale, bias, axis=-1, epsilon=epsilon)


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
