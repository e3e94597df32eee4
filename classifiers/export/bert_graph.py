"""A BERT-like encoder as one ONNX graph with int8 weights, written node by node.

Input `input_ids` (B, S) int64, output `embedding` (B, D) float32, L2-normalised rows. There is no attention
mask: callers batch texts of equal length only, so nothing is ever padded.

Other models are traced (`classifiers.export.traced`). This graph stays because its bytes are in the digest of every
shared encoder, which heads and policies are bound to.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from classifiers.errors import EncoderError
from classifiers.export.int8 import CONTRIB, GraphBuilder

__all__ = ["BertShape", "build_bert"]


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
