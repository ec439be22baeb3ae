"""Attention scores by their algebra: `scale · (Q Kᵀ) + masks`, read backward from a softmax."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import fx

from quire.capture.program import Op, Operand, Program, Size
from quire.rewrite.contraction import product
from quire.rewrite.index_function import (
    Evaluator,
    IndexFunction,
    has_live_key,
    is_causal,
    is_constant,
    is_dead,
)
from quire.rewrite.recipe import Recipe
from quire.rewrite.terms import Affine, Atom, Both, choose

aten: Any = torch.ops.aten

SAME = {
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten._to_copy.default,
    aten.to.dtype,
    aten.to.device,
}
RESHAPES = {aten.view.default, aten._unsafe_view.default, aten.reshape.default}
SCALES = {aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar}


@attrs.frozen
class Mask:
    """An additive mask that broadcasts to the scores, and what it holds where that is known."""

    recipe: Recipe
    function: IndexFunction | None

    @property
    def is_zero(self) -> bool:
        return is_constant(self.function, 0.0)

    @property
    def is_causal(self) -> bool:
        return is_causal(self.function)


@attrs.frozen
class Scores:
    """`scale · (query @ key) + Σ masks`; `query` is `[batch…, m, d]`, `key` `[batch…, d, n]`."""

    query: Recipe
    key: Recipe
    scale: float
    masks: tuple[Mask, ...] = ()


def is_same(op: Op) -> bool:
    """Whether an op gives back its operand's values (a clone, a cast to its own dtype)."""
    return op.target in SAME and op.operands[0].info.dtype == op.out.dtype


def keeps_matrix(op: Op) -> bool:
    """Whether an op only reshapes the batch dims before the last two."""
    source = op.operands[0].shape if op.operands else ()
    return (
        op.target in RESHAPES
        and min(len(source), op.out.ndim) >= 2
        and source[-2:] == op.out.shape[-2:]
    )


def factor(op: Op) -> tuple[Operand, float] | None:
    """`(x, c)` where the op is `c · x` with a positive number c and in x's dtype."""
    if op.target not in SCALES or op.get("rounding_mode") is not None or len(op.operands) != 1:
        return None
    x, c = op["self"], op["other"]
    if not isinstance(x, Operand):
        x, c = c, x
        if op.target not in (aten.mul.Tensor, aten.mul.Scalar):
            return None
    if isinstance(c, bool) or not isinstance(c, int | float) or not 0 < c < float("inf"):
        return None
    if x.info.dtype != op.out.dtype or not x.info.dtype.is_floating_point:
        return None
    return x, float(c) if op.target in (aten.mul.Tensor, aten.mul.Scalar) else 1.0 / c


class ScoreReader:
    """Reads scores backward through a program."""

    def __init__(self, program: Program, evaluator: Evaluator) -> None:
        self.program, self.evaluator = program, evaluator

    def read(self, node: fx.Node) -> Scores | None:
        """The scores that `node` is, if no other node reads it or what lies between."""
        op = self.program.ops.get(node)
        if op is None or len(node.users) != 1:
            return None
        if is_same(op):
            return self.read(op.operands[0].node)
        if keeps_matrix(op):
            return _reshaped(self.read(op.operands[0].node), op)
        if (scaled := factor(op)) is not None:
            return _scaled(self.read(scaled[0].node), scaled[1])
        if op.target is aten.add.Tensor and op["alpha"] == 1:
            return self._sum(op)
        if op.target in (aten.masked_fill.Scalar, aten.where.ScalarOther, aten.where.self):
            return self._filled(op)
        return self._product(op)

    def _product(self, op: Op) -> Scores | None:
        found = product(op)
        if found is None or found.order is not None or found.alpha <= 0:
            return None
        masks = () if found.added is None else (self._mask(found.added),)
        return Scores(found.left, found.right, found.alpha, masks)

    def _mask(self, operand: Operand) -> Mask:
        function = self.evaluator.of(operand.node)
        return Mask(Recipe(operand.node, operand.shape), function)

    def _sum(self, op: Op) -> Scores | None:
        for scores, mask in ((op["self"], op["other"]), (op["other"], op["self"])):
            if not isinstance(scores, Operand) or not isinstance(mask, Operand):
                return None
            if scores.shape != op.out.shape or mask.info.dtype != op.out.dtype:
                continue
            found = self.read(scores.node)
            if found is not None:
                added = self._mask(mask)
                return found if added.is_zero else _with_mask(found, added)
        return None

    def _filled(self, op: Op) -> Scores | None:
        """before: where(seen, scores, fill)   after: scores + where(seen, 0, fill)

        Equal in a softmax with a live key in each row, which is what is asked for.
        """
        if op.target is aten.masked_fill.Scalar:
            scores, seen, fill, when = op["self"], op["mask"], op["value"], False
        else:
            scores, seen, fill, when = op["self"], op["condition"], op["other"], True
        if isinstance(fill, Operand):
            held = self.evaluator.of(fill.node)
            fill = None if held is None else held.value
        fill = float(fill.const) if isinstance(fill, Affine) and fill.is_const else fill
        if not isinstance(fill, int | float) or not is_dead(float(fill), op.out.dtype):
            return None
        if scores.shape != op.out.shape or seen.info.dtype != torch.bool:
            return None
        function = self.evaluator.of(seen.node)
        if function is None or not isinstance(function.value, bool | Atom | Both):
            return None
        ends = (0.0, float(fill)) if when else (float(fill), 0.0)
        additive = attrs.evolve(
            function, dtype=op.out.dtype, value=choose(function.value, ends[0], ends[1])
        )
        found = self.read(scores.node)
        if found is None or not has_live_key(additive):
            return None
        made = Recipe(seen.node, seen.shape)
        made = made if when else made.negated()
        mask = Mask(made.masking(float(fill), op.out.dtype), additive)
        return found if mask.is_zero else _with_mask(found, mask)


def _with_mask(scores: Scores, mask: Mask) -> Scores:
    return attrs.evolve(scores, masks=(*scores.masks, mask))


def _reshaped(scores: Scores | None, op: Op) -> Scores | None:
    """Through a reshape of the batch dims, with `[…, m, n]` kept."""
    if scores is None:
        return None
    batch: tuple[Size, ...] = op.operands[0].shape[:-2]
    if scores.query.shape[:-2] != batch or scores.key.shape[:-2] != batch:
        return None
    if any(m.recipe.shape[:-2] != batch for m in scores.masks):
        return None
    new = op.out.shape[:-2]
    return attrs.evolve(
        scores,
        query=scores.query.view((*new, *scores.query.shape[-2:])),
        key=scores.key.view((*new, *scores.key.shape[-2:])),
        # What a mask holds is said in the indices before the reshape.
        masks=tuple(Mask(m.recipe.view((*new, *m.recipe.shape[-2:])), None) for m in scores.masks),
    )


def _scaled(scores: Scores | None, by: float) -> Scores | None:
    if scores is None:
        return None
    masks = tuple(Mask(m.recipe.scaled(by), None) for m in scores.masks)
    return attrs.evolve(scores, scale=scores.scale * by, masks=masks)
