"""The table of ONNX rules, and the ops on known values that may hold symbolic sizes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import numpy as np
import onnx
import torch
from onnx import numpy_helper

T = onnx.TensorProto
DTYPES: dict[int, torch.dtype] = {
    T.FLOAT: torch.float32, T.DOUBLE: torch.float64, T.FLOAT16: torch.float16,
    T.BFLOAT16: torch.bfloat16, T.INT64: torch.int64, T.INT32: torch.int32,
    T.INT16: torch.int16, T.INT8: torch.int8, T.UINT8: torch.uint8, T.BOOL: torch.bool,
}  # fmt: skip


def to_torch(array: np.ndarray) -> torch.Tensor:
    """A copy of `array`. Raises TypeError for a dtype that torch lacks."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(np.array(array.view(np.int16))).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


class NotStaticError(Exception):
    """The operand at `position` decides a shape, and is not known when the file is read."""

    def __init__(self, position: int) -> None:
        super().__init__(position)
        self.position = position


@attrs.frozen
class Node:
    """An op, the version of its operator set, its attributes, and how many outputs it has here."""

    op: str
    domain: str
    version: int
    name: str
    attributes: dict[str, Any]
    outs: int = 1

    def get(self, name: str, default: Any = None) -> Any:
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    @property
    def has_graph(self) -> bool:
        return any(isinstance(v, onnx.GraphProto) for v in self.attributes.values())


Rule = Callable[[Node, list[Any], Callable[[Any, int], Any]], Any]
RULES: dict[str, Rule] = {}


def op(names: str, *, static: Sequence[int] = ()) -> Callable[[Any], Any]:
    """Register `function(node, *operands)`; operands are tensors (None where left out), but for
    those at the positions of `static`, which are lists of numbers, sizes or truth values."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        def apply(node: Node, given: list[Any], tensor: Callable[[Any, int], Any]) -> Any:
            operands = []
            for k, value in enumerate(given):
                if k in static and value is not None:
                    if not isinstance(value, np.ndarray):
                        raise NotStaticError(k)
                    operands.append(value.tolist())
                else:
                    operands.append(tensor(value, k))
            return function(node, *operands)

        for name in names.split():
            RULES[name] = apply
        return function

    return register


def _each(function: Callable[[Any, Any], Any]) -> Callable[..., np.ndarray]:
    def apply(node: Node, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a, b = np.broadcast_arrays(a, b)
        out = np.empty(a.shape, dtype=object)
        for i in np.ndindex(a.shape):
            x, y = a[i], b[i]
            out[i] = function(
                x.item() if isinstance(x, np.generic) else x,
                y.item() if isinstance(y, np.generic) else y,
            )
        return out

    return apply


def _axes(node: Node, rest: Sequence[Any]) -> list[int]:
    return [int(a) for a in (rest[0] if rest else node.get("axes"))]


def _unsqueeze(node: Node, x: np.ndarray, *rest: Any) -> np.ndarray:
    return np.expand_dims(x, tuple(_axes(node, rest)))


def _squeeze(node: Node, x: np.ndarray, *rest: Any) -> np.ndarray:
    return np.squeeze(x, tuple(_axes(node, rest)) if rest or node.get("axes") else None)


def _slice(node: Node, x: np.ndarray, *rest: Any) -> np.ndarray:
    starts, ends = rest[:2] if rest else (node.get("starts"), node.get("ends"))
    axes = rest[2] if len(rest) > 2 and rest[2] is not None else range(len(starts))
    steps = rest[3] if len(rest) > 3 else [1] * len(starts)
    at: list[Any] = [slice(None)] * x.ndim
    for axis, a, b, by in zip(axes, starts, ends, steps, strict=False):
        at[int(axis)] = slice(int(a), int(b), int(by))
    return x[tuple(at)]


def _filled(node: Node, shape: np.ndarray) -> Any:
    value = node.get("value")
    fill = np.zeros(1, np.float32) if value is None else numpy_helper.to_array(value)
    sizes = shape.tolist()
    if any(not isinstance(s, int) for s in sizes) or np.prod(sizes, initial=1) > 1 << 16:
        dtype = DTYPES[onnx.helper.np_dtype_to_tensor_dtype(fill.dtype)]
        return torch.full(sizes, fill.ravel()[0].item(), dtype=dtype)
    return np.full(sizes, fill.ravel()[0], fill.dtype)


def _range(node: Node, a: np.ndarray, b: np.ndarray, by: np.ndarray) -> Any:
    return torch.arange(a.item(), b.item(), by.item())


SYMBOLIC: dict[str, Callable[..., Any]] = {
    "Add": _each(operator.add),
    "Sub": _each(operator.sub),
    "Mul": _each(operator.mul),
    "Div": _each(operator.floordiv),
    "Mod": _each(operator.mod),
    "Identity": lambda n, x: x,
    "Cast": lambda n, x: x,
    "Concat": lambda n, *xs: np.concatenate(xs, n.get("axis")),
    "Gather": lambda n, x, i: np.asarray(np.take(x, i.astype(int), axis=n.get("axis", 0))),
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Slice": _slice,
    "Reshape": lambda n, x, s: x.reshape([int(k) for k in s]),
    "ReduceProd": lambda n, x, *_: np.asarray(np.prod(x)),
    "ConstantOfShape": _filled,
    "Range": _range,
}
"""On arrays whose elements may be symbolic sizes."""

__all__ = ["DTYPES", "RULES", "SYMBOLIC", "Node", "NotStaticError", "op", "to_torch"]
