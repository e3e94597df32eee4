"""int8 arithmetic in ONNX graphs: for one under construction, and for any transformer's, rewritten in place.

Every activation row is quantised by its own scale, and so is every output column of a weight. ONNX Runtime's dynamic
quantisation takes one scale for the whole tensor, which makes a text's answer depend on the texts beside it; cached
verdicts forbid that. Attention products, norms and the classification layer stay fp32.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

CONTRIB = "com.microsoft"
"""ONNX Runtime's own operators."""

# Weights use 7 of their 8 bits: without VNNI, x86 adds pairs of u8*s8 products in 16 bits, and
# 2 * 255 * 63 is the largest pair that cannot saturate. Costs 0.0015 of the worst cosine (all-MiniLM-L6-v2).
_WEIGHT_LEVELS = 63
_ACTIVATION_LEVELS = 127


@dataclass
class GraphBuilder:
    """Nodes and constants of a graph under construction. Their names are part of digests: they must not change."""

    output_name: str = "n{node}_{output}"
    constant_name: str = "c{constant}"
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, value: NDArray[Any] | np.generic) -> str:
        name = self.constant_name.format(constant=len(self.constants))
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name))
        return name

    def add(self, op: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """A node of one output, whose name is given or made up, and returned."""
        return self.add_many(op, *inputs, outputs=[output] if output else 1, **attributes)[0]

    def add_many(self, op: str, *inputs: str, outputs: int | list[str], **attributes: Any) -> list[str]:
        if isinstance(outputs, int):
            outputs = [self.output_name.format(node=len(self.nodes), output=index) for index in range(outputs)]
        domain = CONTRIB if op in {"MatMulIntegerToFloat", "MultiHeadAttention", "BiasGelu"} else ""
        self.nodes.append(helper.make_node(op, list(inputs), outputs, domain=domain, **attributes))
        return outputs

    def product(self, hidden: str, matrix: NDArray[np.float32], output: str | None = None) -> str:
        """hidden (…, K) times a matrix (K, N)."""
        largest = self.add("ReduceMax", self.add("Abs", hidden), self.constant(np.array([-1])), keepdims=1)
        largest = self.add("Max", largest, self.constant(np.float32(1e-12)))  # never 0 / 0
        scale = self.add("Mul", largest, self.constant(np.float32(1 / _ACTIVATION_LEVELS)))  # (…, 1)
        one, middle = self.constant(np.float32(1)), self.constant(np.uint8(128))
        levels = self.add("QuantizeLinear", self.add("Div", hidden, scale), one, middle)
        quantised, scales = _quantise_rows(matrix.T)
        weight = self.constant(quantised.T), one, self.constant(scales[:, 0])
        return self.add("Mul", self.add("MatMulIntegerToFloat", levels, *weight, middle), scale, output=output)

    def lookup(self, table: NDArray[np.float32], ids: str, output: str | None = None) -> str:
        """Rows of a table (V, D) for token ids."""
        quantised, scales = _quantise_rows(table)
        rows = self.add("Cast", self.add("Gather", self.constant(quantised), ids), to=TensorProto.FLOAT)
        return self.add("Mul", rows, self.add("Gather", self.constant(scales), ids), output=output)


def _quantise_rows(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric levels (N, K) int8 and one scale per row (N, 1)."""
    scales = np.abs(weight).max(axis=1, keepdims=True) / np.float32(_WEIGHT_LEVELS)
    scales[scales == 0] = 1
    return np.rint(weight / scales).astype(np.int8), scales.astype(np.float32)


def quantise(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with its products by constant matrices and its lookups of `input_ids` in int8; changed in place."""
    graph = model.graph
    matrices = {
        tensor.name: tensor
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2
    }
    builder = GraphBuilder("int8_n{node}", "int8_c{constant}")
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in matrices:
            builder.product(node.input[0], numpy_helper.to_array(matrices[node.input[1]]), node.output[0])
        elif node.op_type == "Gather" and node.input[1] == "input_ids" and node.input[0] in matrices:
            builder.lookup(numpy_helper.to_array(matrices[node.input[0]]), node.input[1], node.output[0])
        else:
            builder.nodes.append(node)
    used = {name for node in builder.nodes for name in node.input}
    constants = [*(tensor for tensor in graph.initializer if tensor.name in used), *builder.constants]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(builder.nodes)
    graph.initializer.extend(constants)
    if all(entry.domain != CONTRIB for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
    return model
