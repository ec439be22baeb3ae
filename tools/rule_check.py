"""Does a claimed axis hold? Cut the operands of a real call, run torch on the parts, join, compare.

This is the oracle for flow rules: it reads `Flow` alone and knows nothing of single ops.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import torch
from rule_case import Case, Tensors, run

from quire.flow.relation import Axis, Flow, Join, Part, Span

UNSET = ("aten.empty", "aten.new_empty")
"""Ops whose elements are whatever the memory held."""


class WrongAxisError(AssertionError):
    """A claimed axis does not hold."""


def blocks(span: Span, size: int, a: int, b: int) -> Iterator[tuple[int, int, int, int]]:
    """For each outer block: fill before, first index, end, fill behind."""
    lo, hi = span.interval(a, b)
    inner = size // int(span.outer)
    before = max(0, min(hi, 0) - lo)
    behind = max(0, hi - max(lo, inner))
    if (before or behind) and span.fill is None:
        raise WrongAxisError(f"{span} reads outside the dim and has no fill")
    first, end = min(max(lo, 0), inner), min(max(hi, 0), inner)
    for r in range(int(span.outer)):
        yield before, r * inner + first, r * inner + max(first, end), behind


def cut(tensor: torch.Tensor, span: Span | None, a: int, b: int) -> torch.Tensor:
    """What an axis reads of `tensor` for units `[a, b)`."""
    if span is None:
        return tensor
    pieces = []
    for before, first, end, behind in blocks(span, tensor.shape[span.dim], a, b):
        piece = tensor.narrow(span.dim, first, end - first)
        for count, at_end in ((before, False), (behind, True)):
            if count:
                shape = list(piece.shape)
                shape[span.dim] = count
                extra = torch.full(shape, span.fill or 0, dtype=tensor.dtype)
                piece = torch.cat([piece, extra] if at_end else [extra, piece], span.dim)
        pieces.append(piece)
    return torch.cat(pieces, span.dim).contiguous()


def part_shape(shape: Sequence[int], span: Span | None, a: int, b: int) -> tuple[int, ...]:
    if span is None:
        return tuple(shape)
    lo, hi = span.interval(a, b)
    return (*shape[: span.dim], int(span.outer * (hi - lo)), *shape[span.dim + 1 :])


def bounds(size: int, rng: random.Random) -> list[int]:
    """The borders of one to five parts of different length."""
    count = min(size, rng.randint(2, 5))
    if count < 2:
        return [0, size]
    return [0, *sorted(rng.sample(range(1, size), count - 1)), size]


def check_axis(case: Case, flow: Flow, axis: Axis, cuts: Sequence[int]) -> None:
    """Raise WrongAxisError unless parts at the borders `cuts` join to the whole."""
    op = case.op
    if len(axis.reads) != len(op.operands) or len(axis.writes) != len(op.outputs):
        raise WrongAxisError("one span for each operand and output, please")
    parts: list[tuple[int, int, Tensors, Tensors]] = []
    for a, b in itertools.pairwise(cuts):
        read = [cut(t, s, a, b) for t, s in zip(case.tensors, axis.reads, strict=True)]
        shapes = tuple(
            part_shape(out.shape, s, a, b) for out, s in zip(case.whole, axis.writes, strict=True)
        )
        edits = axis.edit(Part(op, a, b, shapes)) if axis.edit else {}
        try:
            made = run(op, read, edits, axis.target)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise WrongAxisError(f"part [{a}, {b}) does not run: {error}") from error
        if axis.join is Join.WITHIN:
            # What runs in a plan is not the op: the part is that of the other operand.
            compare(made[0], next(t for i, t in enumerate(read) if i != axis.init))
        for result, shape in zip(made, shapes, strict=True):
            if tuple(result.shape) != shape:
                raise WrongAxisError(f"part [{a}, {b}) is {tuple(result.shape)}, not {shape}")
        parts.append((a, b, made, read))
    for k, (whole, span) in enumerate(zip(case.whole, axis.writes, strict=True)):
        if str(op.target).startswith(UNSET):
            continue
        if span is not None:
            compare(concat(case, span, axis, parts, k), whole)
        elif axis.join is Join.CONCAT:
            for _, _, made, _ in parts:
                compare(made[k], whole)
        else:
            joined = fold(axis, [(b - a, made[k]) for a, b, made, _ in parts])
            compare(joined + start(case, flow, axis) if axis.init is not None else joined, whole)


def check_pair(case: Case, one: Axis, two: Axis, rng: random.Random) -> None:
    """Raise WrongAxisError unless a part of two axes at once is that part of the whole.

    The axes must be of different dims everywhere and not fold; others pass unchecked.
    """
    pairs = [*zip(one.reads, two.reads, strict=True), *zip(one.writes, two.writes, strict=True)]
    if one.join is not Join.CONCAT or two.join is not Join.CONCAT:
        return
    if any(a is not None and b is not None and a.dim == b.dim for a, b in pairs):
        return
    op, read, wanted = case.op, case.tensors, case.whole
    ranges = []
    for axis in (one, two):
        lo = rng.randrange(int(axis.size) or 1)
        hi = rng.randint(min(lo + 1, int(axis.size)), int(axis.size))
        ranges.append((lo, hi))
        read = [cut(t, s, lo, hi) for t, s in zip(read, axis.reads, strict=True)]
        wanted = [cut(t, s, lo, hi) for t, s in zip(wanted, axis.writes, strict=True)]
    shapes = tuple(tuple(w.shape) for w in wanted)
    extra: dict[str, Any] = {}
    for axis, (lo, hi) in zip((one, two), ranges, strict=True):
        edits = axis.edit(Part(op, lo, hi, shapes)) if axis.edit else {}
        known = {k: v for k, v in edits.items() if k in op.arguments}
        extra |= {k: v for k, v in edits.items() if k not in op.arguments}
        op = attrs.evolve(op, arguments={**op.arguments, **known})
    try:
        made = run(op, read, extra, one.target or two.target)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise WrongAxisError(f"a part of two axes does not run: {error}") from error
    for found, value in zip(made, wanted, strict=True):
        if found.shape != value.shape:
            raise WrongAxisError(f"a part of two axes is {found.shape}, not {value.shape}")
        if not str(op.target).startswith(UNSET):
            compare(found, value)


def concat(case: Case, span: Span, axis: Axis, parts: Sequence[Any], k: int) -> torch.Tensor:
    """Write the parts of output `k` to where `span` says; each element must be written once, but
    for the rest of a WITHIN."""
    whole = case.whole[k]
    result = torch.zeros_like(whole)
    if axis.join is Join.WITHIN:
        assert axis.init is not None
        result = case.tensors[axis.init].clone()
    times = torch.zeros(whole.shape[span.dim], dtype=torch.int64)
    least = 0 if axis.join is Join.WITHIN else 1
    weights = rescale(axis, parts) if axis.join is Join.SOFTMAX else None
    for i, (a, b, made, _) in enumerate(parts):
        value = made[k]
        if weights is not None:
            # A part that is −∞ throughout is NaN, and counts nothing.
            value = torch.where(weights[i] == 0, 0, value * weights[i])
        at = 0
        for _, first, end, _ in blocks(span, whole.shape[span.dim], a, b):
            piece = value.narrow(span.dim, at, end - first)
            result.narrow(span.dim, first, end - first).copy_(piece)
            times[first:end] += 1
            at += end - first
    if not bool(((times >= least) & (times <= 1)).all()):
        raise WrongAxisError(f"{span} writes some elements not once but {times.tolist()} times")
    return result


def rescale(axis: Axis, parts: Sequence[Any]) -> list[torch.Tensor]:
    """The share of each part in the sum of exponentials, by which its softmax is too large."""
    dim = axis.reads[0].dim if axis.reads[0] else 0
    values = [read[0].double() for _, _, _, read in parts]
    if any(value.numel() == 0 for value in values):
        return [torch.ones_like(value) for value in values]
    tops = [value.amax(dim, keepdim=True) for value in values]
    top = torch.stack(tops).amax(0)
    sums = [(value - top).exp().sum(dim, keepdim=True) for value in values]
    return [one / torch.stack(sums).sum(0) for one in sums]


def fold(axis: Axis, parts: Sequence[tuple[int, torch.Tensor]]) -> torch.Tensor:
    values = torch.stack([value for _, value in parts])
    match axis.join:
        case Join.SUM:
            return values.sum(0)
        case Join.MEAN:
            total = sum(count for count, _ in parts)
            return torch.stack([value * (count / total) for count, value in parts]).sum(0)
        case Join.MAX:
            return values.amax(0)
        case Join.MIN:
            return values.amin(0)
        case Join.PROD:
            return values.prod(0)
        case Join.ANY:
            return values.any(0)
        case Join.ALL:
            return values.all(0)
    raise WrongAxisError(f"{axis.join} does not fold")


def start(case: Case, flow: Flow, axis: Axis) -> torch.Tensor:
    """The operand a sum starts with, its dims moved to where the flow's other axes write them."""
    assert axis.init is not None
    value, out = case.tensors[axis.init], case.whole[0]
    at = {
        other.reads[axis.init].dim: other.writes[0].dim
        for other in flow.axes
        if other.reads[axis.init] is not None and other.writes[0] is not None
    }
    shape = [1] * out.ndim
    for dim, size in enumerate(value.shape):
        shape[at.get(dim, dim + out.ndim - value.ndim)] = size
    return value.reshape(shape)


def compare(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Equal up to rounding; a join of uint8 or bool parts may have another dtype."""
    rough = wanted.dtype in (torch.float32, torch.complex64)
    loose = wanted.dtype in (torch.float16, torch.bfloat16)
    tolerance = 2e-2 if loose else 1e-4 if rough else 1e-9
    try:
        torch.testing.assert_close(
            found.to(wanted.dtype), wanted, rtol=tolerance, atol=tolerance, equal_nan=True
        )
    except AssertionError as error:
        raise WrongAxisError(str(error).splitlines()[0]) from error


def check(case: Case, flow: Flow, rng: random.Random) -> Iterator[tuple[Axis, str]]:
    """The axes of `flow` that do not hold, with what is wrong."""
    for axis in flow.axes:
        try:
            check_axis(case, flow, axis, bounds(int(axis.size), rng))
        except WrongAxisError as error:
            yield axis, str(error)
    for one, two in itertools.islice(itertools.permutations(flow.axes, 2), 6):
        try:
            check_pair(case, one, two, rng)
        except WrongAxisError as error:
            yield two, f"with {one}: {error}"
    written = {a.writes[0].dim for a in flow.axes if a.writes and a.writes[0] is not None}
    if case.whole:
        silent = set(range(case.whole[0].ndim)) - written - set(flow.opaque)
        if silent:
            yield Axis(0, (), ()), f"dims {silent} have no axis and no reason"
