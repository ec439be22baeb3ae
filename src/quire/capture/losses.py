"""Losses that no rule takes as they are, written by what has one. In a training step alone.

    loss(x, y, mean)       →  mean of loss(x, y, none)              losses of single elements
    nll_loss(x, y, mean)   →  sum of nll_loss(x, y, none) / what counts
    cross_entropy(x, p)    →  products of a log softmax and p       targets that are probabilities
    gaussian_nll_loss      →  without its look at the data          while it is captured
    what has no rule       →  torch's own decomposition of it, if there is one

The kernel of single elements and its gradient stay torch's: where a logarithm would be infinite, it
is not the formula that they compute.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.overrides import TorchFunctionMode

aten: Any = torch.ops.aten

NONE, MEAN = 0, 1

ROUNDS = 4
"""How deep decompositions may hold others that have no rule."""

OF_ELEMENTS = {
    aten.mse_loss.default,
    aten.l1_loss.default,
    aten.smooth_l1_loss.default,
    aten.huber_loss.default,
    aten.binary_cross_entropy.default,
    aten.binary_cross_entropy_with_logits.default,
    aten.soft_margin_loss.default,
}


def taken_apart(exported: ExportedProgram, known: Callable[[Any], bool]) -> ExportedProgram:
    """`exported` with such losses written out; `known` says whether an ATen overload has a rule."""
    tried: set[Any] = set()
    for _ in range(ROUNDS):
        table = _table(exported, known, tried)
        if not table:
            break
        with torch.no_grad(), warnings.catch_warnings():
            # torch's own use of its deprecated LeafSpec.
            warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
            exported = exported.run_decompositions(table)
    return exported


def _table(
    exported: ExportedProgram, known: Callable[[Any], bool], tried: set[Any]
) -> dict[Any, Callable[..., Any]]:
    """What is to be written otherwise, and how; of torch's decompositions each is tried once."""
    found: dict[Any, Callable[..., Any]] = {}
    theirs: Any = None
    for node in _calls(exported):
        op: Any = node.target
        if op._schema.is_mutable or op in found:
            continue
        given = _named(op, node.args, node.kwargs)
        if op in OF_ELEMENTS:
            if given["reduction"] != NONE:
                found[op] = _of_elements(op)
        elif op is aten.nll_loss_nd.default:
            if given["reduction"] == MEAN:
                found[op] = _nll_loss
        elif op is aten.cross_entropy_loss.default:
            if given["target"].meta["val"].is_floating_point():
                found[op] = _cross_entropy
        elif not known(op) and op not in tried:
            tried.add(op)
            if theirs is None:
                theirs = torch.export.default_decompositions()
            if op in theirs:
                found[op] = theirs[op]
    return found


def _calls(exported: ExportedProgram) -> Iterator[fx.Node]:
    """The calls of ATen ops, those within branches of the graph too."""
    for module in exported.graph_module.modules():
        if isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                if isinstance(node.target, torch._ops.OpOverload) and (
                    node.target.namespace == "aten"
                ):
                    yield node


def _named(op: Any, args: Sequence[Any], kwargs: Any) -> dict[str, Any]:
    """Arguments by the names of the schema, in its order, defaults filled in."""
    names = [a.name for a in op._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return {a.name: given.get(a.name, a.default_value) for a in op._schema.arguments}


class Written(TorchFunctionMode):
    """While a model is captured: functions of torch that look at data, by what they compute. Modes
    are of one thread: what others call meanwhile is torch's own."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is F.gaussian_nll_loss:
            func = _gaussian_nll
        return func(*args, **(kwargs or {}))


# --- what they are written by: NotImplemented leaves a call as it is ------------------------------


def _of_elements(op: Any) -> Callable[..., Any]:
    def reduced(*args: Any, **kwargs: Any) -> Any:
        given = _named(op, args, kwargs)
        how = given["reduction"]
        if how == NONE:
            return NotImplemented
        each = op(*{**given, "reduction": NONE}.values())
        return each.mean() if how == MEAN else each.sum()

    return reduced


def _nll_loss(*args: Any, **kwargs: Any) -> Any:
    """Sum and number are whole before they are divided."""
    given = _named(aten.nll_loss_nd.default, args, kwargs)
    if given["reduction"] != MEAN:
        return NotImplemented
    target, weight = given["target"], given["weight"]
    each = aten.nll_loss_nd.default(*{**given, "reduction": NONE}.values())
    counted: Tensor = target != given["ignore_index"]
    if weight is not None:
        counted = torch.where(counted, weight[torch.where(counted, target, 0)], 0)
    wide = torch.float32 if each.dtype in (torch.float16, torch.bfloat16) else each.dtype
    return (each.sum(dtype=wide) / counted.sum(dtype=wide)).to(each.dtype)


def _cross_entropy(*args: Any, **kwargs: Any) -> Any:
    given = _named(aten.cross_entropy_loss.default, args, kwargs)
    scores, target, weight = given["self"], given["target"], given["weight"]
    if not target.is_floating_point():
        return NotImplemented
    classes = 1 if scores.dim() > 1 else 0
    if smooth := given["label_smoothing"]:
        target = target * (1 - smooth) + smooth / scores.shape[classes]
    each = -(F.log_softmax(scores, classes) * target)
    if weight is not None:
        each = each * weight.view(-1, *[1] * (scores.dim() - classes - 1))
    each = each.sum(classes)
    how = given["reduction"]
    return each if how == NONE else each.mean() if how == MEAN else each.sum()


def _gaussian_nll(
    input: Tensor,
    target: Tensor,
    var: Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    """torch's raises where a variance is below 0, which no graph can; and holds it above `eps`
    without holding up its gradient."""
    if not isinstance(var, Tensor):
        var = torch.full_like(input, var)
    if var.shape != input.shape and var.shape == input.shape[:-1]:
        var = var.unsqueeze(-1)
    var = var + (var.clamp(min=eps) - var).detach()
    each = 0.5 * (torch.log(var) + (input - target) ** 2 / var)
    if full:
        each = each + 0.5 * math.log(2 * math.pi)
    return each if reduction == "none" else each.mean() if reduction == "mean" else each.sum()
