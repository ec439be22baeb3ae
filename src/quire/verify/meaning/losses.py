"""Losses of single elements, and of rows by their class: each, their mean or their sum."""

from __future__ import annotations

from typing import Any

from quire.verify import term as t
from quire.verify.meaning.contraction import sum_over
from quire.verify.meaning.pointwise import mul, pointwise, sub
from quire.verify.meaning.reduce import mean, sum_
from quire.verify.meaning.table import means
from quire.verify.poly import Poly, poly
from quire.verify.value import NoMeaning, Value, as_real, build

NONE, MEAN, SUM = 0, 1, 2


def reduced(each: Value, reduction: Any) -> Value:
    if reduction == NONE:
        return each
    return mean(each) if reduction == MEAN else sum_(each)


@means("mse_loss")
def mse_loss(self: Value, target: Value, reduction: Any = MEAN) -> Value:
    apart = sub(self, target)
    return reduced(mul(apart, apart), reduction)


def _of_elements(name: str) -> None:
    """A function, known by its name, of the operands' elements; a weight multiplies it."""

    def f(
        self: Value, target: Value, weight: Any = None, reduction: Any = MEAN,
        pos_weight: Any = None, **more: Any,
    ) -> Value:  # fmt: skip
        extra = tuple(str(v) for _, v in sorted(more.items()))
        given = [self, target] if pos_weight is None else [self, target, pos_weight]
        each = pointwise(self.dtype, lambda *xs: t.fn(name, *map(as_real, xs), *extra), *given)
        return reduced(each if weight is None else mul(each, weight), reduction)

    means(name)(f)


for _name in (
    "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy",
    "binary_cross_entropy_with_logits", "soft_margin_loss",
):  # fmt: skip
    _of_elements(_name)


@means("nll_loss_nd", "nll_loss")
def nll_loss(
    self: Value, target: Value, weight: Any = None, reduction: Any = MEAN, ignore_index: Any = -100
) -> Value:
    """−x[target] by the class's weight, 0 where the target is `ignore_index`; the mean is over the
    weights of rows that count."""
    if target.kind != "int" or target.ndim != self.ndim - 1:
        raise NoMeaning("the likelihood of probabilities")

    def counted(idx: list[Poly]) -> t.Term:
        own = target.int(idx)
        kept = t.ind(t.not_(t.eq(own - poly(ignore_index))))
        return kept if weight is None else t.mul((kept, 1), (weight.real([own]), 1))

    def loss(idx: list[Poly]) -> t.Term:
        own = target.int(idx)
        at = [idx[0], own, *idx[1:]] if idx else [own]
        return t.mul((t.const(-1), 1), (counted(idx), 1), (self.real(at), 1))

    if reduction == NONE:
        return build(target.shape, self.dtype, loss)
    total = sum_over(list(target.shape), loss)
    if reduction == SUM:
        return build([], self.dtype, lambda _: total)
    count = sum_over(list(target.shape), counted)
    return build([], self.dtype, lambda _: t.mul((total, 1), (count, -1)))
