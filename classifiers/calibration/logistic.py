"""Weighted, L2-regularised logistic regression on dense plus sparse features, in float64 and deterministic.

Minimises sum_i c_i log(1 + exp(-y_i z_i)) + (l2 / 2) |w|^2 over w and an unregularised bias, by L-BFGS
(Nocedal & Wright 2006, algorithms 7.4 and 7.5) with a backtracking line search. The problem is convex: the
result does not depend on the starting point.
"""

import functools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from classifiers.encoders.features import LEXICAL_BUCKETS, PromptFeatures

Float64 = NDArray[np.float64]
_HISTORY = 10
_MAX_ITERATIONS = 300
_TOLERANCE = 1e-5  # of the gradient's largest entry; the weights c_i add up to 1


@dataclass(frozen=True)
class Design:
    """Features of N texts as matrices: `dense` (N, dim), and the sparse block in rows, row i being
    `columns[starts[i]:starts[i + 1]]` with `values` alike."""

    dense: Float64
    columns: NDArray[np.int64]
    values: Float64
    starts: NDArray[np.int64]

    @classmethod
    def stack(cls, features: Sequence[PromptFeatures]) -> Self:
        lengths = [len(one.indices) for one in features]
        return cls(
            dense=np.stack([one.embedding for one in features]).astype(np.float64),
            columns=np.concatenate([one.indices for one in features]),
            values=np.concatenate([one.values for one in features]).astype(np.float64),
            starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        )

    def __len__(self) -> int:
        return len(self.dense)

    def rows(self, keep: NDArray[np.int64]) -> "Design":
        """The design of the texts `keep` alone, in that order."""
        lengths = np.diff(self.starts)[keep]
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        take = np.repeat(self.starts[keep] - starts[:-1], lengths) + np.arange(starts[-1])
        return Design(self.dense[keep], self.columns[take], self.values[take], starts)

    def scaled(self, dense: Float64, sparse: Float64) -> "Design":
        """Dense column i times dense[i], sparse column j times sparse[j]."""
        return Design(self.dense * dense, self.columns, self.values * sparse[self.columns], self.starts)

    @functools.cached_property
    def row_index(self) -> NDArray[np.int64]:
        """For each sparse entry the row it belongs to."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def times(self, dense: Float64, sparse: Float64) -> Float64:
        """(N,): the matrix product with one weight vector."""
        return self.dense @ dense + _product(self._matrices[0], sparse)

    def transposed_times(self, residual: Float64) -> tuple[Float64, Float64]:
        """The gradient's two blocks for a residual (N,)."""
        return residual @ self.dense, _product(self._matrices[1], residual)

    @functools.cached_property
    def _matrices(self) -> tuple[Any, Any]:
        """The sparse block (N, LEXICAL_BUCKETS) and its transpose as torch's CSR matrices: three times as fast as
        NumPy's counting, and what a fit spends its time on."""
        order = np.argsort(self.columns, kind="stable")
        buckets = np.concatenate([[0], np.cumsum(np.bincount(self.columns, minlength=LEXICAL_BUCKETS))])
        return (
            _csr(self.starts, self.columns, self.values, (len(self), LEXICAL_BUCKETS)),
            _csr(buckets, self.row_index[order], self.values[order], (LEXICAL_BUCKETS, len(self))),
        )


def _csr(starts: NDArray[np.int64], columns: NDArray[np.int64], values: Float64, size: tuple[int, int]) -> Any:
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that CSR is in beta: products with a vector have long been settled
        return torch.sparse_csr_tensor(
            torch.from_numpy(starts.astype(np.int64)),
            torch.from_numpy(columns),
            torch.from_numpy(values),
            size=size,
        )


def _product(matrix: Any, vector: Float64) -> Float64:
    import torch

    result: Float64 = (matrix @ torch.from_numpy(np.ascontiguousarray(vector))).numpy()
    return result


def fit_logistic(design: Design, labels: Float64, weights: Float64, l2: float) -> tuple[Float64, Float64, float]:
    """Dense weights (dim,), sparse weights (LEXICAL_BUCKETS,), bias; labels in {0, 1} (N,), weights c (N,)."""
    dim = design.dense.shape[1]
    signs = 2 * labels - 1

    def loss(point: Float64) -> tuple[float, Float64]:
        body, bias = point[:-1], point[-1]
        margin = signs * (design.times(body[:dim], body[dim:]) + bias)
        value = float(weights @ np.logaddexp(0, -margin)) + l2 / 2 * float(body @ body)
        residual = -weights * signs * _sigmoid(-margin)
        dense, sparse = design.transposed_times(residual)
        gradient = np.concatenate([dense, sparse, [residual.sum()]])
        gradient[:-1] += l2 * body
        return value, gradient

    point = minimise(loss, np.zeros(dim + LEXICAL_BUCKETS + 1))
    return point[:dim], point[dim:-1], float(point[-1])


def minimise(loss: Callable[[Float64], tuple[float, Float64]], start: Float64) -> Float64:
    """L-BFGS from `start`; `loss` gives value and gradient of a convex function."""
    point = start
    value, gradient = loss(point)
    pairs: deque[tuple[Float64, Float64]] = deque(maxlen=_HISTORY)
    for _ in range(_MAX_ITERATIONS):
        if np.abs(gradient).max() < _TOLERANCE:
            break
        direction = -_inverse_hessian_times(gradient, pairs)
        slope = float(gradient @ direction)
        step = 1.0 if pairs else min(1.0, 1.0 / float(np.abs(gradient).sum()))
        for _ in range(40):
            following = point + step * direction
            new_value, new_gradient = loss(following)
            if new_value <= value + 1e-4 * step * slope:
                break
            step /= 2
        else:
            break  # at the limit of float64: no step improves
        change, turn = following - point, new_gradient - gradient
        if float(change @ turn) > 1e-12 * float(turn @ turn):
            pairs.append((change, turn))
        point, value, gradient = following, new_value, new_gradient
    return point


def _inverse_hessian_times(gradient: Float64, pairs: Sequence[tuple[Float64, Float64]]) -> Float64:
    result = gradient.copy()
    factors = []
    for change, turn in reversed(pairs):
        factor = float(change @ result) / float(change @ turn)
        factors.append(factor)
        result -= factor * turn
    if pairs:
        change, turn = pairs[-1]
        result *= float(change @ turn) / float(turn @ turn)
    for (change, turn), factor in zip(pairs, reversed(factors), strict=True):
        result += (factor - float(turn @ result) / float(change @ turn)) * change
    return result


def _sigmoid(z: Float64) -> Float64:
    return 0.5 * (1 + np.tanh(z / 2))
