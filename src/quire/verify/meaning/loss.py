"""Cross entropy, in the sums it is defined by."""

from __future__ import annotations

from typing import Any

from quire.verify import term as t
from quire.verify.meaning.contraction import sum_over
from quire.verify.meaning.table import means
from quire.verify.poly import Poly, poly
from quire.verify.value import NoMeaning, Value, build

MEAN, SUM = 1, 2


@means("cross_entropy_loss")
def cross_entropy_loss(
    self: Value, target: Value, weight: Any = None, reduction: Any = MEAN, ignore_index: Any = -100,
    label_smoothing: float = 0.0,
) -> Value:  # fmt: skip
    """−log softmax(x)[target], of rows whose target is not `ignore_index`: their weighted mean or
    sum."""
    if reduction not in (MEAN, SUM):
        raise NoMeaning("cross entropy of each row")
    total, count = summed(self, target, weight, ignore_index, label_smoothing)
    if reduction == SUM:
        return build([], self.dtype, lambda _: total)
    return build([], self.dtype, lambda _: t.mul((total, 1), (count, -1)))


def summed(
    x: Value, target: Value, weight: Any, ignore_index: Any, label_smoothing: float
) -> tuple[t.Term, t.Term]:
    """The sum of the rows' losses, and the number, or weight, of the rows that count."""
    if label_smoothing:
        raise NoMeaning("cross entropy with smoothed labels")
    if target.kind != "int" or target.ndim != x.ndim - 1:
        raise NoMeaning("cross entropy of probabilities")

    def counted(idx: list[Poly]) -> t.Term:
        own = target.int(idx)
        kept = t.ind(t.not_(t.eq(own - poly(ignore_index))))
        return kept if weight is None else t.mul((kept, 1), (weight.real([own]), 1))

    def loss(idx: list[Poly]) -> t.Term:
        def at(c: Poly) -> list[Poly]:
            return [idx[0], c, *idx[1:]] if idx else [c]

        mass = t.bind("sum", x.shape[1 if idx else 0], lambda c: t.exp(x.real(at(c))))
        own = t.add((1, t.fn("log", mass)), (-1, x.real(at(target.int(idx)))))
        return t.mul((counted(idx), 1), (own, 1))

    return sum_over(list(target.shape), loss), sum_over(list(target.shape), counted)
