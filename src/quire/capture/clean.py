"""Remove what does no work from a freshly captured graph, in place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

aten: Any = torch.ops.aten

CHECKS = {
    aten._assert_tensor_metadata.default,
    aten._assert_scalar.default,
    aten._assert_async.msg,
    aten.sym_constrain_range_for_size.default,
    aten.sym_constrain_range.default,
}
"""Calls for their effect only; the runtime's own guards take their place."""

COPIES = {
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.detach_.default,
    aten.expand.default,
    aten.lift_fresh_copy.default,
    aten._to_copy.default,
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.device,
    aten._unsafe_view.default,
    aten.view.default,
    aten.reshape.default,
    aten.slice.Tensor,
}
"""Ops that, where their output has the facts of their input, give back its values."""

STOPS = {aten.detach.default, aten.detach_.default}


def clean(graph: fx.Graph, trained: Iterable[fx.Node] = ()) -> None:
    """Drop assertions, and copies and views that change nothing (a dropout in evaluation becomes
    such a clone). A copy of an input that the model returns stays: it is a new tensor; so does a
    detach of what depends on a `trained` input: gradients end there."""
    reached = set(trained)
    for node in graph.nodes:
        if any(n in reached for n in node.all_input_nodes):
            reached.add(node)
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in CHECKS:
            graph.erase_node(node)
        elif node.target in STOPS and node in reached:
            continue
        elif node.target in COPIES and _is_same(node) and not _returns_input(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users:
            graph.erase_node(node)
    graph.lint()


def _is_same(node: fx.Node) -> bool:
    before, after = node.args[0].meta.get("val"), node.meta.get("val")  # type: ignore[union-attr]
    if not isinstance(before, torch.Tensor) or not isinstance(after, torch.Tensor):
        return False
    return (
        before.dtype == after.dtype
        and before.device == after.device
        and before.dim() == after.dim()
        and all(_equal(a, b) for a, b in zip(before.shape, after.shape, strict=True))
        and all(_equal(a, b) for a, b in zip(before.stride(), after.stride(), strict=True))
    )


def _equal(a: Any, b: Any) -> bool:
    """Equal for all values of the symbols; no guard is added."""
    left = a.node.expr if isinstance(a, torch.SymInt) else a
    right = b.node.expr if isinstance(b, torch.SymInt) else b
    return bool(left == right)


def _returns_input(node: fx.Node) -> bool:
    source = node.args[0]
    return source.op == "placeholder" and any(u.op == "output" for u in node.users)  # type: ignore[union-attr]
