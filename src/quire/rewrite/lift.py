"""Local rewrites that leave fewer, plainer ops. Each is one function `Draft → None`.

lift_linears    addmm/mm/linear on rows flattened by a view → linear on the tensor itself
drop_idle       x·1, x+0, views of views, copies that copy nothing → x
split_to_slices split/chunk/unbind and getitem → slice/select
share           equal calls → one call
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from quire.capture.clean import COPIES
from quire.capture.program import Operand, Size, evaluate
from quire.rewrite.draft import VIEWS, Draft, Refused
from quire.rewrite.index_function import Evaluator, is_constant

aten: Any = torch.ops.aten

POINTWISE = {
    aten.abs.default,
    aten.cos.default,
    aten.exp.default,
    aten.gelu.default,
    aten.neg.default,
    aten.relu.default,
    aten.rsqrt.default,
    aten.sigmoid.default,
    aten.silu.default,
    aten.sin.default,
    aten.tanh.default,
}
"""Ops of one tensor that may move past a view; with numbers, `SCALAR` too."""

SCALAR = {
    aten.add.Tensor,
    aten.div.Tensor,
    aten.mul.Tensor,
    aten.pow.Tensor_Scalar,
    aten.sub.Tensor,
}

SMALL = 1 << 16
"""Elements up to which a result may be kept alive for a later equal call without a thought."""


# --- linear ---------------------------------------------------------------------------------


def lift_linears(draft: Draft) -> None:
    """before   addmm(b, view(x, [-1, k]), W)        after   view(linear(x, Wᵀ, b), [-1, n])
                mm(view(x, [-1, k]), W)                      view(linear(x, Wᵀ), [-1, n])
                linear(view(x, [-1, k]), W, b)               view(linear(x, W, b), [-1, n])
                f(view(x)), f pointwise                      view(f(x))

    Side conditions: the view keeps the last dim (for f: any view); W is a matrix and b a vector;
    alpha = beta = 1. Claim: the same products in the same order; equal.
    """
    for node in draft.nodes():
        try:
            lifted = _lifted(draft, node)
            if lifted is not None:
                sizes = draft.size_arguments(draft.shape(node))
                draft.replace(node, draft.call(aten.view.default, (lifted, sizes), at=node))
        except Refused:
            continue


def _lifted(draft: Draft, node: fx.Node) -> fx.Node | None:
    if node.target is aten.linear.default:
        source = _flattened(draft, node.args[0])
        return source and draft.call(node.target, (source, *node.args[1:]), at=node)
    if node.target in (aten.addmm.default, aten.mm.default):
        *bias, rows, weight = node.args
        source = _flattened(draft, rows)
        if source is None or any(v != 1 for v in node.kwargs.values()):
            return None
        if bias and len(draft.shape(bias[0])) != 1:  # type: ignore[arg-type]
            return None
        turned = draft.call(aten.permute.default, (weight, [1, 0]), at=node)
        return draft.call(aten.linear.default, (source, turned, *bias), at=node)
    moves = node.target in POINTWISE or (
        node.target in SCALAR and not any(isinstance(a, fx.Node) for a in node.args[1:])
    )
    if moves and draft.is_tensor(node.args[0]):
        source = _viewed(node.args[0])  # type: ignore[arg-type]
        if source is not None and _rank(draft, source) >= _rank(draft, node.args[0]):
            return draft.call(node.target, (source, *node.args[1:]), node.kwargs, at=node)
    return None


def _rank(draft: Draft, node: Any) -> int:
    return len(draft.shape(node))


def _viewed(node: fx.Node) -> fx.Node | None:
    return node.args[0] if node.target in VIEWS else None  # type: ignore[return-value]


def _flattened(draft: Draft, rows: Any) -> fx.Node | None:
    """x, where `rows` is a view of it as a matrix of its last dim."""
    source = _viewed(rows) if draft.is_tensor(rows) else None
    if source is None or _rank(draft, rows) != 2 or _rank(draft, source) < 3:
        return None
    return source if draft.shape(source)[-1] == draft.shape(rows)[-1] else None


# --- what does nothing ----------------------------------------------------------------------


def drop_idle(draft: Draft) -> None:
    """before   view(view(x)), view(x) of x's own shape, a copy in the layout that x has
       after    view(x), x, x

    Strides of dims of size 1 do not count. Claim: equal.
    """
    for node in draft.nodes(*(VIEWS | COPIES)):
        source = node.args[0]
        if not draft.is_tensor(source) or not draft.is_tensor(node):
            continue
        try:
            if node.target in VIEWS and source.target in VIEWS:  # type: ignore[union-attr]
                whole = source.args[0]  # type: ignore[union-attr]
                sizes = draft.size_arguments(draft.shape(node))
                draft.rewire(node, aten.view.default, (whole, sizes))
                source = whole
            if _is_same(draft, source, node) and not _is_output(node, source):
                draft.replace(node, source)  # type: ignore[arg-type]
        except Refused:
            continue


def _is_same(draft: Draft, a: Any, b: fx.Node) -> bool:
    one, two = draft.info(a), draft.info(b)
    if (one.dtype, one.device, one.shape) != (two.dtype, two.device, two.shape):
        return False
    strides = zip(one.shape, one.stride, two.stride, strict=True)
    return all(size == 1 or s == t for size, s, t in strides)


def _is_output(node: fx.Node, source: Any) -> bool:
    """A copy that the model returns stays a tensor of its own."""
    returned = any(u.op == "output" for u in node.users)
    return returned and (source.op == "placeholder" or any(u.op == "output" for u in source.users))


def drop_neutral(draft: Draft) -> None:
    """before   x · 1, x / 1, x + 0, x − 0     after   x

    where the other operand is that number, or a tensor that provably holds nothing else.
    Side conditions: x has the result's shape and dtype. Claim: equal.
    """
    evaluator = Evaluator(draft.program)
    neutral = {"mul": 1, "div": 1, "add": 0, "sub": 0}
    for old, op in draft.program.ops.items():
        name, _, overload = str(op.target).removeprefix("aten.").partition(".")
        if name not in neutral or overload not in ("Tensor", "Scalar") or op.get("alpha", 1) != 1:
            continue
        if op.get("rounding_mode") is not None:
            continue
        orders = [("self", "other"), ("other", "self")]
        for kept, other in orders if name in ("mul", "add") else orders[:1]:
            x, number = op[kept], op[other]
            if not isinstance(x, Operand):
                continue
            if (x.info.dtype, x.shape) != (op.out.dtype, op.out.shape):
                continue
            if isinstance(number, Operand):
                idle = is_constant(evaluator.of(number.node), neutral[name])
            else:
                idle = isinstance(number, int | float) and number == neutral[name]
            node = draft.new[old]
            source: Any = node.args[0 if kept == "self" else 1]
            if idle and not _is_output(node, source):
                draft.replace(node, source)
                break


# --- split ----------------------------------------------------------------------------------


def split_to_slices(draft: Draft) -> None:
    """before   getitem(split(x, …), i)     after   slice(x, dim, start, end)
                getitem(unbind(x, dim), i)          select(x, dim, i)

    Side condition: the dim's size is known. Claim: the same view.
    """
    splits = (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)
    for node in draft.nodes(*splits, aten.unbind.int):
        source: Any = node.args[0]
        last = node.args[2:] if node.target in splits else node.args[1:]
        given: Any = last[0] if last else node.kwargs.get("dim", 0)
        dim = int(given) % _rank(draft, source)
        sizes = _sizes_of(node, dim)
        for user in list(node.users):
            if user.target is not operator.getitem or sizes is None:
                continue
            at: int = user.args[1] % len(sizes)  # type: ignore[operator,assignment]
            if node.target is aten.unbind.int:
                made = draft.call(aten.select.int, (source, dim, at), at=user)
            else:
                start = sum(sizes[:at])
                args = (source, dim, start, start + sizes[at])
                made = draft.call(aten.slice.Tensor, args, at=user)
            draft.replace(user, made)


def _sizes_of(node: fx.Node, dim: int) -> list[int] | None:
    parts = node.meta["val"]
    if node.target is aten.unbind.int:
        return [1] * len(parts)
    sizes: list[Size] = [p.shape[dim] for p in parts]
    return [int(s) for s in sizes] if all(isinstance(s, int) for s in sizes) else None


# --- equal calls ----------------------------------------------------------------------------


def share(draft: Draft) -> None:
    """before   f(x) … f(x)     after   f(x), once

    Side conditions: f is no random op and its result is not returned; and keeping the result
    must not raise the peak: it is a view, small, or an operand at least as large was only kept
    for the later call. Claim: equal.
    """
    first: dict[Any, fx.Node] = {}
    for node in draft.nodes():
        key = _key(node)
        if key is None or any(u.op == "output" for u in node.users):
            continue
        known = first.setdefault(key, node)
        if known is not node and _is_cheap_to_keep(draft, known, key):
            draft.replace(node, known)


def _key(node: fx.Node) -> Any:
    tags = getattr(node.target, "tags", ())
    if torch.Tag.nondeterministic_seeded in tags or node.target is aten.empty.memory_format:
        return None
    key = (node.target, _frozen(node.args), _frozen(node.kwargs))
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _frozen(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_frozen(v) for v in value)
    if isinstance(value, dict):
        return tuple((k, _frozen(v)) for k, v in value.items())
    # 1 == 1.0 == True, and yet they make tensors of different dtypes.
    return (type(value), repr(value)) if isinstance(value, bool | int | float) else value


def _is_cheap_to_keep(draft: Draft, node: fx.Node, key: Any) -> bool:
    value = node.meta["val"]
    if not isinstance(value, torch.Tensor):
        return True
    returns = getattr(node.target, "_schema", None)
    if returns is not None and any(r.alias_info is not None for r in returns.returns):
        return True
    size = _hinted(draft, node)
    if size <= SMALL:
        return True
    return any(
        operand.op == "call_function"
        and draft.is_tensor(operand)
        and _hinted(draft, operand) >= size
        and all(_key(user) == key for user in operand.users)
        for operand in node.all_input_nodes
    )


def _hinted(draft: Draft, node: fx.Node) -> int:
    return evaluate(draft.info(node).numel, draft.program.hints)
