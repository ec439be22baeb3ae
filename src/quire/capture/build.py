"""fx graph with `meta["val"]` on its nodes → the tables of a `Program`."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, cast

import attrs
import sympy
import torch
from torch import fx
from torch.utils import _pytree as pytree
from torch.utils._sympy.functions import FloorDiv

from quire.capture.program import Input, Op, Operand, Program, Size, Symbol, TensorInfo, Where
from quire.errors import CaptureError

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]+\n\s*(?P<code>[^\n]*)')


def size_of(value: Any) -> Any:
    """An int, or the sympy expression of a SymInt."""
    if isinstance(value, torch.SymInt):
        expr = cast(Any, value.node.expr)
        if expr.has(FloorDiv):
            expr = expr.replace(FloorDiv, _exact)
        return int(expr) if expr.is_Integer else expr
    return int(value)


def _exact(number: sympy.Expr, by: sympy.Expr) -> Any:
    """A floor division without the floor where it divides for all values: s²//s is s."""
    ratio = sympy.cancel(number / by)
    whole = (
        ratio.is_polynomial() and all(c.is_Integer for c in sympy.Poly(ratio).coeffs())
        if (ratio.free_symbols)
        else ratio.is_Integer
    )
    return ratio if whole else FloorDiv(number, by)


def tensor_info(value: torch.Tensor) -> TensorInfo:
    return TensorInfo(
        shape=tuple(size_of(s) for s in value.shape),
        dtype=value.dtype,
        stride=tuple(size_of(s) for s in value.stride()),
        device=value.device,
    )


def where_of(node: fx.Node) -> Where:
    """The place in the user's model that `node` comes from."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    module, kind = stack[-1] if stack else ("", "")
    file, line, code = _own_frame(node.meta.get("stack_trace") or "")
    kind = kind if isinstance(kind, str) else kind.__name__
    kind = kind.rsplit(".", 1)[-1]
    return Where(module=module, kind=kind, file=file, line=line, code=code)


@cache
def _own_frame(trace: str) -> tuple[str, int, str]:
    """File, line and code of the innermost frame of a stack trace that is the model's."""
    frames = list(_FRAME.finditer(trace))
    if not frames:
        return "", 0, ""
    own = [f for f in frames if not re.search(r"[/\\](torch|quire[/\\]capture)[/\\]", f["file"])]
    last = (own or frames)[-1]
    return last["file"], int(last["line"]), last["code"].strip()


def _sizes(node: fx.Node) -> Size | None:
    value = node.meta.get("val")
    if isinstance(value, bool) or value is None:
        return None
    return size_of(value) if isinstance(value, int | torch.SymInt) else None


def _infos(node: fx.Node) -> tuple[TensorInfo, ...] | None:
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        return (tensor_info(value),)
    if isinstance(value, list | tuple) and any(isinstance(v, torch.Tensor) for v in value):
        return tuple(tensor_info(v) for v in value if isinstance(v, torch.Tensor))
    return None


def make_op(
    node: fx.Node,
    infos: Mapping[fx.Node, tuple[TensorInfo, ...]],
    sizes: Mapping[fx.Node, Size],
) -> Op:
    """`node`, a call of an ATen overload, with its arguments bound to the op's schema."""
    operands: list[Operand] = []

    def bind(value: Any) -> Any:
        if isinstance(value, fx.Node):
            if value in sizes:
                return sizes[value]
            operands.append(Operand(len(operands), value, infos[value][0]))
            return operands[-1]
        if isinstance(value, list | tuple):
            return [bind(v) for v in value]
        return value

    schema = node.target._schema  # type: ignore[union-attr]
    arguments: dict[str, Any] = {}
    for position, argument in enumerate(schema.arguments):
        if position < len(node.args):
            arguments[argument.name] = bind(node.args[position])
        elif argument.name in node.kwargs:
            arguments[argument.name] = bind(node.kwargs[argument.name])
        else:
            arguments[argument.name] = argument.default_value
    return Op(node, node.target, arguments, tuple(operands), infos[node], where_of(node))


def tables(
    graph: fx.Graph,
) -> tuple[
    dict[fx.Node, tuple[TensorInfo, ...]],
    dict[fx.Node, Size],
    dict[fx.Node, Op],
]:
    """`infos`, `sizes` and `ops` of a graph, read from its nodes' `meta["val"]`.

    Raises CaptureError for a call that is no ATen op.
    """
    infos: dict[fx.Node, tuple[TensorInfo, ...]] = {}
    sizes: dict[fx.Node, Size] = {}
    ops: dict[fx.Node, Op] = {}
    for node in graph.nodes:
        if node.op == "output":
            continue
        size, info = _sizes(node), _infos(node)
        if size is not None:
            sizes[node] = size
        elif info is not None:
            infos[node] = info
        if node.op != "call_function" or node in sizes or node.target is operator.getitem:
            continue
        if not isinstance(node.target, torch._ops.OpOverload) or info is None:
            raise CaptureError(
                f"{node.target} is not an ATen op on tensors",
                where=str(where_of(node)),
                allowed="models that torch.export turns into one flat graph of ATen ops",
                fix="move data-dependent control flow out of the model, or replace this call",
            )
        ops[node] = make_op(node, infos, sizes)
    return infos, sizes, ops


def find_symbols(
    graph: fx.Graph, ranges: Mapping[Any, Any], users: Iterable[fx.Node]
) -> tuple[Symbol, ...]:
    """The length symbols of a graph, each with the input dim it is read from."""
    found: dict[sympy.Symbol, Symbol] = {}
    for node in users:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            continue
        for dim, size in enumerate(value.shape):
            if not isinstance(size, torch.SymInt):
                continue
            expr = size.node.expr
            if isinstance(expr, sympy.Symbol) and expr not in found:
                bounds = ranges.get(expr)
                lo = int(bounds.lower) if bounds is not None else 0
                unbounded = bounds is None or not bounds.upper.is_Integer
                hi = None if bounds is None or unbounded else int(bounds.upper)
                found[expr] = Symbol(expr, lo, hi, int(size.node.hint), node, dim)
    used = {
        symbol
        for node in graph.nodes
        for info in (_infos(node) or ())
        for size in info.shape
        if not isinstance(size, int)
        for symbol in size.free_symbols
    }
    if missing := used - set(found):
        raise CaptureError(
            f"the sizes {sorted(map(str, missing))} depend on the data, not on the inputs' shapes",
            allowed="sizes that follow from the shapes of the inputs",
            fix="give these sizes as shapes, or replace ops such as nonzero and masked_select",
        )
    return tuple(found.values())


def rebuild(program: Program, graph: fx.Graph, renamed: Mapping[fx.Node, fx.Node]) -> Program:
    """`program` with the edited `graph` in place of its own.

    Every node of `graph` must carry `meta["val"]`; `renamed` maps the old inputs' nodes to those
    of `graph` (identity where the graph was edited in place).
    """
    infos, sizes, ops = tables(graph)
    output = next(n for n in reversed(graph.nodes) if n.op == "output")
    return attrs.evolve(
        program,
        graph=graph,
        infos=infos,
        sizes=sizes,
        ops=ops,
        inputs=tuple(Input(renamed.get(i.node, i.node), i.kind, i.target) for i in program.inputs),
        outputs=tuple(pytree.tree_leaves(output.args[0])),
        symbols=tuple(
            attrs.evolve(s, source=renamed.get(s.source, s.source)) for s in program.symbols
        ),
    )
