"""How far two fp evaluations of one model may differ, from its dtype and its reductions.

A sum of K terms in floating point carries an error that grows like sqrt(K)·eps of its size when
the roundings are independent (Higham, Accuracy and Stability of Numerical Algorithms, §2.8). Two
orders of summation differ by as much. Errors of successive ops add up, so the tolerance of a
program is eps times the sum of sqrt(K) over its ops, relative to the largest value of an output.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx


def _shape(value: Any) -> tuple[int, ...]:
    tensor = value.meta.get("val") if isinstance(value, fx.Node) else None
    return tuple(int(s) for s in tensor.shape) if isinstance(tensor, torch.Tensor) else ()


def reduction_length(node: fx.Node) -> int:
    """How many products or terms go into one element of what `node` computes; 1 if elementwise."""
    name = str(node.target).split(".")[1] if "." in str(node.target) else ""
    shapes = [_shape(arg) for arg in node.all_input_nodes]
    if not shapes or not shapes[0]:
        return 1
    if name in ("linear", "matmul", "mm", "bmm"):
        return shapes[0][-1]
    if name in ("addmm", "baddbmm"):
        return shapes[1][-1]
    if name == "scaled_dot_product_attention":
        return shapes[0][-1] + shapes[1][-2]
    if name.startswith("conv"):
        weight = _shape(node.args[1])
        return math.prod(weight[1:])
    if name in ("softmax", "_softmax", "log_softmax", "cumsum"):
        return shapes[0][int(node.args[1])]  # pyright: ignore
    if name in ("layer_norm", "rms_norm"):
        return math.prod(node.args[1])  # pyright: ignore
    if name == "group_norm":
        return math.prod(shapes[0][1:]) // int(node.args[1])  # pyright: ignore
    out = _shape(node)
    if name in ("sum", "mean", "einsum", "adaptive_avg_pool1d", "adaptive_avg_pool2d"):
        return max(1, math.prod(max(shapes, key=math.prod)) // max(1, math.prod(out)))
    return 1


MOVES = (
    "view", "transpose", "permute", "clone", "unsqueeze", "squeeze", "expand", "slice", "select",
    "cat", "split", "_unsafe_view", "_assert_tensor_metadata", "index", "embedding", "reshape",
    "contiguous", "dropout", "pad", "roll", "chunk", "arange", "getitem",
)  # fmt: skip
"""Ops that move values and round nothing."""


def tolerance(graph: fx.Graph, dtype: torch.dtype = torch.float32) -> float:
    """The allowed difference of outputs, relative to the largest value of each output."""
    total = 0.0
    for node in graph.nodes:
        val = node.meta.get("val")
        if node.op != "call_function" or not isinstance(val, torch.Tensor):
            continue
        name = str(node.target).split(".")[1] if "." in str(node.target) else ""
        if val.dtype.is_floating_point and name not in MOVES:
            total += math.sqrt(reduction_length(node))
    return torch.finfo(dtype).eps * max(total, 1.0)
