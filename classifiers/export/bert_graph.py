"""A BERT-like encoder as one ONNX graph with int8 weights, written node by node.

Input `input_ids` (B, S) int64, output `embedding` (B, D) float32, L2-normalised rows. There is no attention
mask: callers batch texts of equal length only, so nothing is ever padded.

Every activation row is quantised by its own scale. ONNX Runtime's dynamic quantisation takes one scale for
the whole tensor, which makes a text's embedding depend on the texts beside it; cached verdicts forbid that.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from classifiers.errors import EncoderError

# Weights use 7 of their 8 bits: without VNNI, x86 adds pairs of u8*s8 products in 16 bits, and
# 2 * 255 * 63 is the largest pair that cannot saturate. Costs 0.0015 of the worst cosine (all-MiniLM-L6-v2).
_WEIGHT_LEVELS = 63
_ACTIVATION_LEVELS = 127
_CONTRIB = "com.microsoft"

Weights = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class BertShape:
    """What the graph needs beside weights. `first_position` is 0 for BERT, pad id + 1 for RoBERTa."""

    layers: int
    heads: int
    layer_norm_epsilon: float
    first_position: int
    pooling: str  # "mean" or "cls"


@dataclass
class _Graph:
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, value: NDArray[np.generic] | np.generic) -> str:
        name = f"c{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name))
        return name

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> list[str]:
        domain = _CONTRIB if op in {"MatMulIntegerToFloat", "MultiHeadAttention", "BiasGelu"} else ""
        names = [f"n{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, domain=domain, **attributes))
        return names

    def one(self, op: str, *inputs: str, **attributes: Any) -> str:
        return self.add(op, *inputs, **attributes)[0]


def build_bert(weights: Weights, shape: BertShape) -> onnx.ModelProto:
    """The graph of a BERT or RoBERTa model; `weights` are named as in transformers' `BertModel.state_dict()`.

    Raises:
        EncoderError: a weight the architecture needs is not there.
    """
    graph = _Graph()
    try:
        hidden = _embeddings(graph, weights, shape)  # (B, S, D)
        for layer in range(shape.layers):
            hidden = _layer(graph, weights, shape, hidden, f"encoder.layer.{layer}.")
    except KeyError as error:
        raise EncoderError(f"not a BERT-like encoder: weight {error.args[0]} is missing") from error
    _pool(graph, shape, hidden)
    dim = int(weights["embeddings.word_embeddings.weight"].shape[1])
    return helper.make_model(
        helper.make_graph(
            graph.nodes,
            "encoder",
            [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["B", "S"])],
            [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["B", dim])],
            graph.tensors,
        ),
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(_CONTRIB, 1)],
        ir_version=9,
        producer_name="eco-gateway",
    )


def _embeddings(graph: _Graph, weights: Weights, shape: BertShape) -> str:
    table, scales = _quantise_rows(weights["embeddings.word_embeddings.weight"])
    rows = graph.one("Cast", graph.one("Gather", graph.constant(table), "input_ids"), to=TensorProto.FLOAT)
    words = graph.one("Mul", rows, graph.one("Gather", graph.constant(scales), "input_ids"))
    positions = weights["embeddings.position_embeddings.weight"][shape.first_position :]
    positions = positions + weights["embeddings.token_type_embeddings.weight"][0]
    length = graph.one("Shape", "input_ids", start=1, end=2)
    zero = graph.constant(np.array([0]))
    positioned = graph.one("Slice", graph.constant(positions), zero, length, zero)  # (S, D)
    return _layer_norm(graph, weights, shape, graph.one("Add", words, positioned), "embeddings.LayerNorm")


def _layer(graph: _Graph, weights: Weights, shape: BertShape, hidden: str, prefix: str) -> str:
    attention = [f"{prefix}attention.self.{name}." for name in ("query", "key", "value")]
    joint = np.concatenate([weights[f"{name}weight"] for name in attention])  # (3D, D)
    bias = np.concatenate([weights[f"{name}bias"] for name in attention])
    parts = graph.add("Split", _matmul(graph, hidden, joint), outputs=3, axis=-1, num_outputs=3)
    mixed = graph.one("MultiHeadAttention", *parts, graph.constant(bias), num_heads=shape.heads)
    hidden = _residual(graph, weights, shape, mixed, hidden, f"{prefix}attention.output.")
    up = _matmul(graph, hidden, weights[f"{prefix}intermediate.dense.weight"])
    active = graph.one("BiasGelu", up, graph.constant(weights[f"{prefix}intermediate.dense.bias"]))
    return _residual(graph, weights, shape, active, hidden, f"{prefix}output.")


def _residual(graph: _Graph, weights: Weights, shape: BertShape, inner: str, outer: str, prefix: str) -> str:
    # Add and LayerNormalization apart: ONNX Runtime's fused SkipLayerNormalization is slower on CPU.
    projected = _matmul(graph, inner, weights[f"{prefix}dense.weight"])
    biased = graph.one("Add", projected, graph.constant(weights[f"{prefix}dense.bias"]))
    return _layer_norm(graph, weights, shape, graph.one("Add", biased, outer), f"{prefix}LayerNorm")


def _layer_norm(graph: _Graph, weights: Weights, shape: BertShape, hidden: str, prefix: str) -> str:
    scale, bias = graph.constant(weights[f"{prefix}.weight"]), graph.constant(weights[f"{prefix}.bias"])
    return graph.one("LayerNormalization", hidden, scale, bias, axis=-1, epsilon=shape.layer_norm_epsilon)


def _matmul(graph: _Graph, hidden: str, weight: NDArray[np.float32]) -> str:
    """hidden (B, S, K) times weight (N, K) transposed, in int8: one scale per row and per output column."""
    largest = graph.one("ReduceMax", graph.one("Abs", hidden), graph.constant(np.array([-1])), keepdims=1)
    largest = graph.one("Max", largest, graph.constant(np.float32(1e-12)))  # never 0 / 0
    scale = graph.one("Mul", largest, graph.constant(np.float32(1 / _ACTIVATION_LEVELS)))  # (B, S, 1)
    one, middle = graph.constant(np.float32(1)), graph.constant(np.uint8(128))
    levels = graph.one("QuantizeLinear", graph.one("Div", hidden, scale), one, middle)
    quantised, scales = _quantise_rows(weight)
    product = graph.one(
        "MatMulIntegerToFloat",
        levels,
        graph.constant(quantised.T),
        one,
        graph.constant(scales[:, 0]),
        middle,
    )
    return graph.one("Mul", product, scale)


def _pool(graph: _Graph, shape: BertShape, hidden: str) -> None:
    if shape.pooling == "cls":
        pooled = graph.one("Gather", hidden, graph.constant(np.array(0)), axis=1)
    else:
        pooled = graph.one("ReduceMean", hidden, graph.constant(np.array([1])), keepdims=0)
    graph.nodes.append(helper.make_node("LpNormalization", [pooled], ["embedding"], axis=-1, p=2))


def _quantise_rows(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric levels (N, K) int8 and one scale per row (N, 1)."""
    scales = np.abs(weight).max(axis=1, keepdims=True) / np.float32(_WEIGHT_LEVELS)
    scales[scales == 0] = 1
    return np.rint(weight / scales).astype(np.int8), scales.astype(np.float32)
