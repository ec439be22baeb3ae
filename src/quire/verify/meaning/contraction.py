"""Matrix products, and einsum, whose equations the others are written in."""

from __future__ import annotations

from typing import Any

import torch

from quire.verify import term as t
from quire.verify.meaning.pointwise import add, mul, promoted
from quire.verify.meaning.sorted import group_at
from quire.verify.meaning.table import means
from quire.verify.poly import ONE, Poly, poly
from quire.verify.value import NoMeaning, Value, build, require, same_size, spread


def sum_over(sizes: list[Poly], body: Any) -> t.Term:
    """Σ over all indices below `sizes`, the last the innermost."""
    if not sizes:
        return body([])
    return t.bind("sum", sizes[0], lambda j: sum_over(sizes[1:], lambda js: body([j, *js])))


def contract(equation: str, *xs: Value) -> Value:
    """`equation` such as "…mk,…kn->…mn": one letter a dim; letters missing on the right are
    summed over. Dims of size 1 broadcast."""
    left, right = equation.split("->")
    words = left.split(",")
    sizes: dict[str, Poly] = {}
    for word, x in zip(words, xs, strict=True):
        require(len(word) == x.ndim, f"{word} for a tensor of {x.ndim} dims")
        for letter, size in zip(word, x.shape, strict=True):
            have = sizes.get(letter, ONE)
            if have is ONE:
                sizes[letter] = size
            elif size is not ONE:
                require(same_size(have, size, "sizes agree"), f"sizes {have} and {size}")
    summed = [letter for letter in sizes if letter not in right]
    dtype = promoted(*xs)

    def element(idx: list[Poly]) -> Any:
        at = dict(zip(right, idx, strict=True))

        def body(js: list[Poly]) -> t.Term:
            here = {**at, **dict(zip(summed, js, strict=True))}
            return t.mul(
                *(
                    (x.real(spread([here[c] for c in word], x.shape)), 1)
                    for word, x in zip(words, xs, strict=True)
                )
            )

        return sum_over([sizes[c] for c in summed], body)

    return build([sizes[c] for c in right], dtype, element)


@means("einsum")
def einsum(equation: str, tensors: Any, path: Any = None) -> Value:
    equation = equation.replace(" ", "")
    left, _, right = equation.partition("->")
    words = left.split(",")
    if "..." in equation:
        free = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in equation]
        most = max(x.ndim - len(w) + 3 for w, x in zip(words, tensors, strict=True) if "..." in w)
        hidden = "".join(free[:most])

        def spell(w: str, n: int) -> str:
            count = n - len(w) + 3
            return w.replace("...", hidden[most - count :] if count else "")

        words = [spell(w, x.ndim) if "..." in w else w for w, x in zip(words, tensors, strict=True)]
        right = right.replace("...", hidden)
    if "->" not in equation:
        letters = "".join(words)
        right = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    return contract(",".join(words) + "->" + right, *tensors)


@means("matmul")
def matmul(self: Value, other: Value) -> Value:
    a, b = self, other
    lead_a, lead_b = max(a.ndim - 2, 0), max(b.ndim - 2, 0)
    hidden = "ABCDEFGH"[: max(lead_a, lead_b)]
    left = ("" if not lead_a else hidden[-lead_a:]) + ("mk" if a.ndim > 1 else "k")
    right = ("" if not lead_b else hidden[-lead_b:]) + ("kn" if b.ndim > 1 else "k")
    out = hidden + ("m" if a.ndim > 1 else "") + ("n" if b.ndim > 1 else "")
    return contract(f"{left},{right}->{out}", a, b)


@means("mm")
def mm(self: Value, mat2: Value) -> Value:
    return contract("mk,kn->mn", self, mat2)


@means("bmm")
def bmm(self: Value, mat2: Value) -> Value:
    return contract("bmk,bkn->bmn", self, mat2)


@means("mv")
def mv(self: Value, vec: Value) -> Value:
    return contract("mk,k->m", self, vec)


@means("dot")
def dot(self: Value, tensor: Value) -> Value:
    return contract("k,k->", self, tensor)


@means("outer")
def outer(self: Value, vec2: Value) -> Value:
    return contract("m,n->mn", self, vec2)


def _plus(added: Value, product: Value, beta: Any, alpha: Any) -> Value:
    if alpha != 1:
        product = mul(product, float(alpha))
    if beta == 0:
        return product
    return add(product, added, beta)


@means("addmm")
def addmm(self: Value, mat1: Value, mat2: Value, beta: Any = 1, alpha: Any = 1) -> Value:
    return _plus(self, mm(mat1, mat2), beta, alpha)


@means("baddbmm")
def baddbmm(self: Value, batch1: Value, batch2: Value, beta: Any = 1, alpha: Any = 1) -> Value:
    return _plus(self, bmm(batch1, batch2), beta, alpha)


@means("_grouped_mm")
def grouped_mm(
    self: Value, mat2: Value, offs: Any = None, bias: Any = None, out_dtype: Any = None
) -> Value:
    """Row m times the matrix of its group: the number of groups that end at or before m, or the
    key of row m where groups are the rows sorted by a key."""
    if self.ndim != 2 or mat2.ndim != 3 or not isinstance(offs, Value) or bias is not None:
        raise NoMeaning("a grouped product that is not of rows in groups")
    groups, inner, width = mat2.shape
    require(same_size(inner, self.shape[1], "sizes agree"), "grouped product of other sizes")
    require(same_size(offs.shape[0], groups, "sizes agree"), "other groups than matrices")

    def element(idx: list[Poly]) -> Any:
        def before(g: Poly) -> Any:
            return t.ind(t.ge(idx[0] - offs.int([g])))

        group = group_at(idx[0], self.shape[0], groups, offs)
        if group is None:
            group = t.int_of(t.bind("sum", groups, before))
        return t.bind(
            "sum",
            inner,
            lambda k: t.mul((self.real([idx[0], k]), 1), (mat2.real([group, k, idx[1]]), 1)),
        )

    return build([self.shape[0], width], out_dtype or promoted(self, mat2), element)


@means("grouped_mm_fallback")
def grouped_mm_fallback(input: Value, weight: Value, offs: Any) -> Value:
    """What transformers runs in place of `torch._grouped_mm` for dtypes which that lacks."""
    return grouped_mm(input, weight, offs)


@means("addmv")
def addmv(self: Value, mat: Value, vec: Value, beta: Any = 1, alpha: Any = 1) -> Value:
    return _plus(self, mv(mat, vec), beta, alpha)


@means("addcmul")
def addcmul(self: Value, tensor1: Value, tensor2: Value, value: Any = 1) -> Value:
    return add(self, mul(tensor1, tensor2), value)


@means("linear")
def linear(input: Value, weight: Value, bias: Any = None) -> Value:
    lead = "ABCDEFGH"[: input.ndim - 1]
    if weight.ndim != 2:
        raise NoMeaning("linear with a weight that is no matrix")
    out = contract(f"{lead}k,nk->{lead}n", input, weight)
    return out if bias is None else add(out, bias)


@means("cdist")
def cdist(**_: Any) -> Value:
    raise NoMeaning("cdist")


__all__ = ["poly", "torch"]
