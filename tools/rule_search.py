"""Which axes does a rule not claim though they hold? And may a pointwise op write in place?"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import attrs
import torch
from rule_case import Case, as_list, run
from rule_check import WrongAxisError, bounds, check_axis

from quire.flow.relation import Axis, Edit, Flow, Part, span

MOST_GUESSES = 40
# Kernels that do not check the shapes of their operands: a wrong guess would write past the end.
UNCHECKED = (
    "aten._weight_norm",
    "aten.native_group_norm",
    "aten._native_batch_norm_legit_no_training",
    "aten._softmax_backward_data",
    "aten._log_softmax_backward_data",
)
SIZE_ARGUMENTS = ("size", "shape", "output_size")


def missing(case: Case, flow: Flow, rng: random.Random) -> Iterator[tuple[int, Axis]]:
    """Dims of the first output without an axis that split as a plain map, on several inputs."""
    if not case.whole or str(case.op.target).startswith(("aten.empty", "aten.new_empty")):
        return
    if str(case.op.target).startswith(UNCHECKED):
        return
    out = case.whole[0]
    written = {a.writes[0].dim for a in flow.axes if a.writes and a.writes[0] is not None}
    for dim in range(out.ndim):
        size = out.shape[dim]
        if dim in written or size < 2 or out.numel() == 0:
            continue
        for axis in itertools.islice(guesses(case, dim, size), MOST_GUESSES):
            if holds(case, flow, axis, rng):
                yield dim, axis
                break


def guesses(case: Case, dim: int, size: int) -> Iterator[Axis]:
    """Plain maps to output dim `dim`: each operand read along one dim of that size, or whole."""
    choices = [[span(d) for d, s in enumerate(t.shape) if s == size] + [None] for t in case.tensors]
    writes = tuple(span(dim) if dim < o.ndim and o.shape[dim] == size else None for o in case.whole)
    for reads in itertools.product(*choices):
        if any(reads):
            yield Axis(size, reads, writes, edit=sizes_edit(case))


def sizes_edit(case: Case) -> Edit | None:
    names = [n for n in SIZE_ARGUMENTS if isinstance(case.op.arguments.get(n), list)]
    if not names or any(len(case.op.arguments[n]) != case.whole[0].ndim for n in names):
        return None

    def edit(part: Part) -> dict[str, Any]:
        return {n: list(part.shapes[0]) for n in names}

    return edit


def holds(case: Case, flow: Flow, axis: Axis, rng: random.Random) -> bool:
    for again in range(8):
        try:
            other = case if again == 0 else fresh(case)
            check_axis(other, flow, axis, bounds(int(axis.size), rng))
        except (WrongAxisError, RuntimeError, IndexError, ValueError, TypeError):
            return False
    return True


def fresh(case: Case) -> Case:
    """The same call on other numbers; integers stay within the range they had."""
    tensors = []
    for t in case.tensors:
        if t.dtype == torch.bool:
            tensors.append(torch.rand(t.shape) < 0.5)
        elif t.dtype.is_floating_point:
            tensors.append(torch.rand(t.shape, dtype=torch.float64).to(t.dtype) + 0.1)
        elif t.numel() and not t.dtype.is_complex:
            tensors.append(torch.randint(int(t.min()), int(t.max()) + 1, t.shape, dtype=t.dtype))
        else:
            tensors.append(t)
    whole = run(case.op, tensors, {})
    if [w.shape for w in whole] != [w.shape for w in case.whole]:
        raise WrongAxisError("the shape depends on the data")
    return attrs.evolve(case, tensors=tensors, whole=whole)


def in_place(case: Case) -> str:
    """What goes wrong when a pointwise op writes over each operand of its shape and dtype."""
    out = case.whole[0]
    overload = out_overload(case.op.target)
    if overload is None or out.numel() == 0:
        return ""
    for i, t in enumerate(case.tensors):
        if t.shape != out.shape or t.dtype != out.dtype:
            continue
        tensors = [x.clone() for x in case.tensors]
        names = {a.name for a in overload._schema.arguments}
        arguments = {
            name: tensors[value.index] if value in case.op.operands else value
            for name, value in case.op.arguments.items()
            if name in names
        }
        made = as_list(overload(**arguments, out=tensors[i]))[0]
        if not torch.allclose(made, out, equal_nan=True) or made is not tensors[i]:
            return f"written over operand {i} it differs"
    return ""


def out_overload(target: Any) -> Any:
    """The overload with the same arguments and `out` besides, if there is one."""
    wanted = [a.name for a in target._schema.arguments]
    for name in target.overloadpacket.overloads():
        found = getattr(target.overloadpacket, name)
        arguments = found._schema.arguments
        if not arguments or arguments[-1].name != "out":
            continue
        types = [str(a.type) for a in arguments[:-1]]
        if [a.name for a in arguments[:-1]] == wanted and types == [
            str(a.type) for a in target._schema.arguments
        ]:
            return found
    return None
