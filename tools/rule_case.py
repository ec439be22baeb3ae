"""Real calls of ATen ops as flow rules see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import fx

from quire.capture.build import make_op, tensor_info
from quire.capture.program import Op, Operand, TensorInfo

Tensors = list[torch.Tensor]


@attrs.frozen(eq=False)
class Call:
    """A call of an overload with real arguments."""

    target: Any
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen(eq=False)
class Case:
    """A call as rules see it, the tensors of its operands, and its results."""

    op: Op
    tensors: Tensors
    whole: Tensors


def case_of(call: Call) -> Case:
    """Run `call` and describe it as an `Op`."""
    graph = fx.Graph()
    infos: dict[fx.Node, tuple[TensorInfo, ...]] = {}
    tensors: Tensors = []

    def lift(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            node = graph.placeholder(f"t{len(tensors)}")
            infos[node] = (tensor_info(value),)
            tensors.append(value)
            return node
        if isinstance(value, list | tuple):
            return [lift(v) for v in value]
        return value

    args = tuple(lift(a) for a in call.args)
    kwargs = {k: lift(v) for k, v in call.kwargs.items()}
    node = graph.call_function(call.target, args, kwargs)
    whole = as_list(call.target(*call.args, **call.kwargs))
    infos[node] = tuple(tensor_info(v) for v in whole)
    return Case(make_op(node, infos, {}), tensors, whole)


def as_list(result: Any) -> Tensors:
    return [result] if isinstance(result, torch.Tensor) else list(result or ())


def run(
    op: Op, tensors: Sequence[torch.Tensor], edits: Mapping[str, Any], target: Any = None
) -> Tensors:
    """Run `op`, or `target` in its place, on other tensors, with some arguments replaced.

    An edit may name an argument of a longer overload of the op (`start` for `arange(end)`).
    """

    def fill(value: Any) -> Any:
        if isinstance(value, Operand):
            return tensors[value.index]
        return [fill(v) for v in value] if isinstance(value, list | tuple) else value

    arguments = {name: fill(value) for name, value in op.arguments.items()} | dict(edits)
    known = set(op.arguments) >= set(edits)
    call = target or (op.target if known else op.target.overloadpacket)
    if not known:
        arguments = {k: v for k, v in arguments.items() if v is not None}
    return as_list(call(**arguments))
