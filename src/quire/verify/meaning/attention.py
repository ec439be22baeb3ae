"""Scaled dot-product attention, in the sums it is defined by."""

from __future__ import annotations

import math
from typing import Any

import torch

from quire.verify import term as t
from quire.verify.decide import divmod_
from quire.verify.meaning.contraction import contract
from quire.verify.meaning.normalise import softmax
from quire.verify.meaning.pointwise import add, mul
from quire.verify.meaning.table import means
from quire.verify.poly import Poly
from quire.verify.value import NoMeaning, Value, build


@means("scaled_dot_product_attention")
def sdpa(
    query: Value, key: Value, value: Value, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: Any = False, scale: Any = None, enable_gqa: bool = False, first: Any = 0,
) -> Value:  # fmt: skip
    """softmax(scale·QKᵀ + mask) V; row `first + i` of a causal one sees keys 0 … first + i."""
    if dropout_p:
        raise NoMeaning("attention with dropout")
    if enable_gqa:
        key, value = per_head(key, query), per_head(value, query)
    lead = "ABCDEF"[: query.ndim - 2]
    width = query.shape[-1].constant
    if scale is None:
        if width is None:
            raise NoMeaning("attention with a symbolic head width")
        scale = 1 / math.sqrt(width)
    scores = contract(f"{lead}mk,{lead}nk->{lead}mn", query, key)
    scores = mul(scores, float(scale))
    if attn_mask is not None:
        scores = add(scores, additive(attn_mask))
    if is_causal:
        plain = scores

        def element(idx: list[Poly]) -> Any:
            return t.ite(t.ge(idx[-2] + first - idx[-1]), plain.at(idx), t.NINF)

        scores = build(plain.shape, plain.dtype, element)
    out = contract(f"{lead}mn,{lead}nk->{lead}mk", softmax(scores, -1), value)
    return Value(out.shape, query.dtype, out.scalar)


def additive(mask: Value) -> Value:
    """What a mask adds to the scores: 0 and −∞ for one of truth values."""
    if mask.kind != "bool":
        return mask
    return build(mask.shape, torch.float32, lambda idx: t.ite(mask.at(idx), t.ZERO_, t.NINF))


def per_head(x: Value, query: Value) -> Value:
    """Keys or values for each query head: head h reads h div group."""
    if x.shape[-3] is query.shape[-3]:
        return x
    group, left = divmod_(query.shape[-3], x.shape[-3])
    if left.constant != 0:
        raise NoMeaning("query heads that are no multiple of key heads")

    def element(idx: list[Poly]) -> Any:
        return x.at([*idx[:-3], divmod_(idx[-3], group)[0], *idx[-2:]])

    return build([*x.shape[:-3], query.shape[-3], *x.shape[-2:]], x.dtype, element)
