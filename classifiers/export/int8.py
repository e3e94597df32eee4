"""int8 weights for any transformer's ONNX graph, rewritten in place of its matrix products and its word table.

The same arithmetic as `classifiers.export.bert_graph`, which see for why: one scale per token of an activation and per
output column of a weight, weights within 7 bits. Attention products, norms and the classification layer stay fp32.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from classifiers.export.bert_graph import _ACTIVATION_LEVELS, _CONTRIB, _quantise_rows

__all__ = ["quantise"]


@dataclass
class _Rewriting:
    """Nodes and constants of the graph under construction."""

    weights: dict[str, onnx.TensorProto]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, value: NDArray[Any] | np.generic) -> str:
        name = f"int8_c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name))
        return name

    def add(self, op: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        domain = _CONTRIB if op == "MatMulIntegerToFloat" else ""
        name = output or f"int8_n{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], domain=domain, **attributes))
        return name

    def matrix(self, name: str) -> NDArray[np.float32] | None:
        """A constant fp32 matrix, or None where `name` is something else."""
        tensor = self.weights.get(name)
        if tensor is None or tensor.data_type != TensorProto.FLOAT or len(tensor.dims) != 2:
            return None
        return numpy_helper.to_array(tensor)


def quantise(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with its products by constant matrices and its lookups of `input_ids` in int8; changed in place."""
    graph = model.graph
    work = _Rewriting({tensor.name: tensor for tensor in graph.initializer})
    for node in graph.node:
        matrix = None
        if node.op_type == "MatMul":
            matrix = work.matrix(node.input[1])
        elif node.op_type == "Gather" and node.input[1] == "input_ids":
            matrix = work.matrix(node.input[0])
        if matrix is None:
            work.nodes.append(node)
        elif node.op_type == "MatMul":
            _product(work, node, matrix)
        else:
            _lookup(work, node, matrix)
    used = {name for node in work.nodes for name in node.input}
    constants = [*(tensor for tensor in graph.initializer if tensor.name in used), *work.constants]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(work.nodes)
    graph.initializer.extend(constants)
    if all(entry.domain != _CONTRIB for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_CONTRIB, 1))
    return model


def _product(work: _Rewriting, node: onnx.NodeProto, matrix: NDArray[np.float32]) -> None:
    """hidden (…, K) times a matrix (K, N)."""
    hidden, output = node.input[0], node.output[0]
    largest = work.add("ReduceMax", work.add("Abs", hidden), work.constant(np.array([-1])), keepdims=1)
    largest = work.add("Max", largest, work.constant(np.float32(1e-12)))  # never 0 / 0
    scale = work.add("Mul", largest, work.constant(np.float32(1 / _ACTIVATION_LEVELS)))  # (…, 1)
    one, middle = work.constant(np.float32(1)), work.constant(np.uint8(128))
    levels = work.add("QuantizeLinear", work.add("Div", hidden, scale), one, middle)
    quantised, scales = _quantise_rows(matrix.T)
    product = work.add(
        "MatMulIntegerToFloat", levels, work.constant(quantised.T), one, work.constant(scales[:, 0]), middle
    )
    work.add("Mul", product, scale, output=output)


def _lookup(work: _Rewriting, node: onnx.NodeProto, table: NDArray[np.float32]) -> None:
    """Rows of a table (V, D) for the token ids."""
    ids, output = node.input[1], node.output[0]
    quantised, scales = _quantise_rows(table)
    rows = work.add("Cast", work.add("Gather", work.constant(quantised), ids), to=TensorProto.FLOAT)
    work.add("Mul", rows, work.add("Gather", work.constant(scales), ids), output=output)
