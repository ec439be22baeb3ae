"""Gradients, by the chain rule from the forward claims.

Each rank's loss is L(θ₁ … θ_P), the ranks' copies of the parameters; shown is L(θ … θ) = the
model's loss for all θ. Backward ops are the derivatives of what ran, collectives' backwards their
transposes (axioms `autograd`, `transpose`, `attention-backward`): each rank then holds
g_r = ∂(P·L)/∂θ_r. What is read here is that nothing between stops a gradient, and that the
reduction takes the mean: lemma `gradient-mean`.
"""

from __future__ import annotations

import ast
from fractions import Fraction
from typing import Any

from torch import fx

from quire.verify.claims import Claim
from quire.verify.shard.task import Source, Task
from quire.verify.value import NotShown

STOPS = {"detach", "detach_", "detach_copy", "no_grad", "data", "requires_grad_", "max_ranks"}


def gradient_claims(
    task: Task, reduction: str, equal: tuple[str, ...], missing: str = ""
) -> tuple[Claim, ...]:
    """One claim for each loss of the program: that all parameters' gradients are the model's.
    `missing` is what of the forward claims `equal` is not shown."""
    made = []
    try:
        if missing:
            raise NotShown(f"it rests on outputs that are not shown: {missing}")
        _nothing_stops(task)
        how = _mean(reduction, task.ranks)
        verdict: Any = "proved"
        reason = ""
    except NotShown as error:
        how, verdict, reason = "", "unknown", str(error)
    for k, out in enumerate(task.program.outputs):
        if not isinstance(out, fx.Node) or task.outputs[k] is not None:
            continue
        info = task.program.info(out)
        if info.ndim or not info.dtype.is_floating_point:
            continue
        text = f"the gradients of output {k} by every parameter are the model's on each rank {how}"
        rule = "axioms autograd, transpose, attention-backward; lemma gradient-mean"
        made.append(Claim(f"g{k}", "gradient", text, rule, "", equal, verdict, reason))
    return tuple(made)


def _nothing_stops(task: Task) -> None:
    """No op of the text cuts a gradient, nor does one of the model where parameters are above."""
    for source in task.sources:
        stop = _stop(source)
        if stop:
            raise NotShown(f"{source.module or 'the root'}: {stop} stops gradients")
    reached = {i.node for i in task.program.inputs if i.kind == "parameter"}
    for node in task.program.graph.nodes:
        if node.op == "call_function" and any(n in reached for n in node.all_input_nodes):
            reached.add(node)
            if str(node.target).split(".")[1:2] and str(node.target).split(".")[1] in STOPS:
                raise NotShown(f"{node.name}: the model itself stops gradients here")


def _stop(source: Source) -> str:
    for node in ast.walk(ast.parse(source.text)):
        if isinstance(node, ast.Attribute) and node.attr in STOPS:
            return ast.unparse(node)
        if isinstance(node, ast.Name) and node.id in STOPS:
            return node.id
    return ""


# --- the reduction, run on stand-ins ----------------------------------------------------------


class _Sum:
    """A vector of gradients: `scale` times what all ranks (`summed`), or this one, hold of
    `parts`."""

    def __init__(self, parts: list[Any], summed: bool = False, scale: Any = 1) -> None:
        self.parts, self.summed, self.scale = parts, summed, Fraction(scale)

    def __truediv__(self, n: Any) -> _Sum:
        return _Sum(self.parts, self.summed, self.scale / Fraction(n))

    def __mul__(self, n: Any) -> _Sum:
        return _Sum(self.parts, self.summed, self.scale * Fraction(n))

    def split(self, sizes: list[int]) -> list[_Sum]:
        if sizes != [p.numel() for p in self.parts]:
            raise NotShown("gradients split at other places than they were joined")
        return [_Sum([p], self.summed, self.scale) for p in self.parts]

    def view_as(self, other: Any) -> _Sum:
        return self


class _Grad:
    def __init__(self, size: int, dtype: str) -> None:
        self.size, self.dtype = size, dtype
        self.held: _Sum | None = None

    def numel(self) -> int:
        return self.size

    def element_size(self) -> int:
        return 4

    def reshape(self, *_: Any) -> _Grad:
        return self

    def copy_(self, x: Any) -> None:
        if self.held is not None or not isinstance(x, _Sum):
            raise NotShown("a gradient is written twice")
        self.held = x


class _Parameter:
    def __init__(self, grad: _Grad) -> None:
        self.grad = grad


class _Torch:
    @staticmethod
    def cat(parts: list[Any]) -> _Sum:
        return _Sum(list(parts))


class _Collectives:
    @staticmethod
    def all_reduce(x: _Sum, how: str, group: str, what: str) -> _Sum:
        if how != "sum" or group != "GROUP" or x.summed:
            raise NotShown(f"gradients joined by {how} over {group}")
        return _Sum(x.parts, True, x.scale)


class _Group:
    group_name = "GROUP"

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks

    def size(self) -> int:
        return self.ranks


def _mean(reduction: str, ranks: int) -> str:
    """How gradients become the mean. Raises NotShown if they do not."""
    if not reduction:
        return "once their mean over the ranks is taken, as DDP and FSDP2 do"
    grads = [_Grad(3, "a"), _Grad(5, "a"), _Grad(1 << 30, "a"), _Grad(2, "b"), _Grad(7, "a")]
    parameters = [_Parameter(g) for g in grads]
    scope: dict[str, Any] = {"torch": _Torch, "collectives": _Collectives}
    try:
        exec(compile("from __future__ import annotations\n" + reduction, "<mean>", "exec"), scope)
        kind = scope["_Averager"]
        own = kind.__new__(kind)
        own.group = _Group(ranks)
        own.order = {p: k for k, p in enumerate(parameters)}
        own.ready = list(reversed(parameters))
        own._finish()
    except (AttributeError, KeyError, TypeError, NameError, ValueError, SyntaxError) as error:
        raise NotShown(f"the reduction of gradients cannot be read: {error!r}") from error
    for grad in grads:
        held = grad.held
        if held is None or held.parts != [grad] or not held.summed:
            raise NotShown("a gradient that is not summed over the ranks")
        if held.scale != Fraction(1, ranks):
            raise NotShown(f"gradients summed over {ranks} ranks and taken {held.scale} times")
    return "after their mean over the ranks"
