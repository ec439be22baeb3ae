"""How far float results may lie from exact ones on given inputs, to first order.

A certificate's statement of rounding is per op. This carries it through a graph: with δₙ the error
that op n makes of exact operands, an output is off by Σₙ ∂out/∂n · δₙ and terms of second order
(Higham, Accuracy and Stability of Numerical Algorithms, 2002, §3.3 and §5). |δₙ| is at most γₘ
times op n evaluated in absolute values, and the derivatives are the graph's own, by autograd. Sums
may be taken in any order, so that it holds for a kernel as well as for torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._decomp import get_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

from quire.capture.program import Program
from quire.verify.rounding import FUNCTION, gamma

aten = torch.ops.aten

_TAKEN_APART = [
    aten.native_layer_norm, aten.native_group_norm, aten._fused_rms_norm, aten.silu, aten.gelu,
    aten.softplus, aten.addmm, aten.baddbmm, aten.elu, aten.leaky_relu, aten.linear, aten.var,
    aten._native_batch_norm_legit_no_training, aten.hardtanh, aten.log_sigmoid_forward, aten.t,
    aten._scaled_dot_product_flash_attention_for_cpu,
]  # fmt: skip

EXACT = {
    "relu", "neg", "abs", "clamp", "clamp_min", "clamp_max", "amax", "amin", "maximum", "minimum",
    "where", "cat", "index", "index_select", "embedding", "gather", "scatter", "index_put", "clone",
    "_to_copy", "copy", "topk", "sort", "full", "full_like", "zeros_like", "ones_like", "arange",
    "scalar_tensor", "repeat", "constant_pad_nd", "masked_fill", "max", "tril", "triu", "flip",
    "empty", "new_zeros", "new_full", "roll", "lift_fresh_copy", "stack", "zeros", "ones", "detach",
    "slice_scatter", "select_scatter", "floor", "ceil", "round", "trunc", "sign",
    "new_empty_strided", "new_empty", "copy_", "_unsafe_view", "_reshape_alias",
}  # fmt: skip
"""Ops without rounding, given their operands."""

ONCE = {"add", "sub", "rsub", "mul", "div", "reciprocal", "sqrt"}


def _absolutely(name: str, args: Sequence[Any], out: Tensor) -> tuple[Tensor, int]:
    """An op evaluated in absolute values, and the most roundings on the way through it."""
    if name in ("mm", "bmm", "mv", "dot"):
        a, b = args
        return torch.matmul(a.abs(), b.abs()), a.shape[-1] + 1
    if name in ("sum", "mean", "cumsum"):
        x = args[0]
        dims = args[1] if len(args) > 1 and args[1] is not None else list(range(x.ndim))
        dims = dims if isinstance(dims, list | tuple) else [dims]
        count = math.prod(x.shape[d] for d in dims)
        if name == "cumsum":
            return x.abs().cumsum(args[1]), count
        return x.abs().sum(dims).reshape(out.shape) / (count if name == "mean" else 1), count + 1
    if name in ("_softmax", "_safe_softmax"):
        x, dim = args[0], args[1]
        away = (x - x.amax(dim, True)).nan_to_num(0, 0, 0).abs()
        # Two exp where blocks of keys are joined.
        return out * (1 + away), x.shape[dim] + 2 * FUNCTION + 4
    if name == "_log_softmax":
        return out.abs() + args[0].abs() + 1, args[0].shape[args[1]] + 2 * FUNCTION + 4
    if name == "pow":
        return out.abs(), FUNCTION
    if name in ("sin", "cos", "erf", "tanh", "log"):
        return out.abs().clamp(min=1), FUNCTION
    return out.abs(), 1 if name in ONCE else FUNCTION + 2


class _Perturbed(fx.Interpreter):
    """Adds a zero to what each op gives that rounds, to take the derivative by."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.errors: list[tuple[Tensor, Tensor]] = []

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        out = super().call_function(target, args, kwargs)
        if not isinstance(out, Tensor) or not out.is_floating_point():
            return out
        name = target._schema.name.split("::")[1].rstrip("_") if hasattr(target, "_schema") else ""
        views = hasattr(target, "_schema") and any(r.alias_info for r in target._schema.returns)
        if not name or name in EXACT or views:
            return out
        with torch.no_grad():
            size, count = _absolutely(name, args, out)
            room = gamma(count, out.dtype) * size.nan_to_num(0, 0, 0)
        zero = torch.zeros_like(out, requires_grad=True)
        self.errors.append((zero, room))
        return out + zero


def bounds(
    program: Program,
    inputs: Sequence[Tensor],
    places: Sequence[tuple[int, ...]],
    output: int = 0,
    before: Sequence[Sequence[Tensor]] = (),
) -> list[float]:
    """For each of `places`, an index into output number `output`: how far it may lie from the exact
    value, computed in the dtype of `inputs` (the user's, in order) and the program's weights.

    `before`: the inputs of earlier calls, oldest first, each with what the calls before it wrote
    into them (`Program.writes`), such as the keys and values of earlier tokens. Their errors are
    part of the bound; without, `inputs` are taken to be exact.

    Raises ValueError for an output that is no float tensor.
    """
    if not program.info(program.outputs[output]).dtype.is_floating_point:
        raise ValueError(f"output {output} is no float tensor")
    kept = {n: v for n, v in program.writes.items() if program.info(n).dtype.is_floating_point}
    function = _rounded(program, [program.outputs[output]], inputs)
    found, slopes = [0.0] * len(places), []
    for given in (inputs, *reversed(before)) if kept else (inputs,):
        values = _values(program, given)
        leaves = {n: values[n].detach().clone().requires_grad_() for n in kept}
        run = _Perturbed(function)
        outs = run.run(*{**values, **leaves}.values())
        slopes = slopes or [_one(outs[0], place) for place in places]
        zeros = [z for z, _ in run.errors]
        for k, slope in enumerate(slopes):
            by = torch.autograd.grad(
                outs, [*zeros, *leaves.values()], slope, retain_graph=True, materialize_grads=True
            )
            found[k] += sum(
                float((g.abs().double() * room.double()).sum())
                for g, (_, room) in zip(by, run.errors, strict=False)
            )
            slopes[k] = list(by[len(zeros) :])
        if given is inputs and before:
            function = _rounded(program, list(kept.values()), inputs)
    return found


def _one(out: Tensor, place: tuple[int, ...]) -> list[Tensor]:
    slope = torch.zeros_like(out)
    slope[place] = 1
    return [slope]


def _values(program: Program, inputs: Sequence[Tensor]) -> dict[fx.Node, Tensor]:
    """The graph's inputs that are tensors, in its order."""
    given = iter(inputs)
    return {
        i.node: next(given) if i.kind == "user" else program.state[i.target].detach()
        for i in program.inputs
    }


def _rounded(program: Program, ends: Sequence[fx.Node], inputs: Sequence[Tensor]) -> fx.GraphModule:
    """The graph from its tensors to `ends`, in ops whose roundings are counted."""
    tensors = _values(program, inputs).values()
    with torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        parts: Any = get_decompositions(_TAKEN_APART)
        return make_fx(_only(program, ends), parts)(*tensors)


def _only(program: Program, ends: Sequence[fx.Node]) -> Callable[..., list[Tensor]]:
    """The graph with `ends` for its outputs, of the inputs that are tensors."""
    graph = fx.Graph()
    known: dict[fx.Node, Any] = {}
    names = {i.node for i in program.inputs}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            known[node] = graph.placeholder(node.name) if node in names else None
        elif node.op != "output":
            known[node] = graph.node_copy(node, lambda n: known[n])
    graph.output([known[end] for end in ends])
    graph.eliminate_dead_code()
    return fx.GraphModule(nn.Module(), graph)
