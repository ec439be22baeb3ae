"""Calls that are a batched matrix product, in one form: `out = permute(left @ right)`."""

from __future__ import annotations

from typing import Any

import attrs
import torch

from quire.capture.program import Op, Operand, Size
from quire.rewrite.recipe import Recipe

aten: Any = torch.ops.aten


@attrs.frozen
class Product:
    """`left @ right` with `alpha` before it and `added` on top; `left` is `[batch…, m, k]`,
    `right` is `[batch…, k, n]`, batch dims broadcast. `order` are the dims of the op's output
    among those of the product."""

    left: Recipe
    right: Recipe
    alpha: float = 1.0
    added: Operand | None = None
    order: tuple[int, ...] | None = None


def product(op: Op) -> Product | None:
    """`op` as a matrix product of operands with at least two dims, or None."""
    if op.target in (aten.matmul.default, aten.bmm.default):
        left, right = op["self"], op.get("other") or op.get("mat2")
        if left.ndim < 2 or right.ndim < 2:
            return None
        return Product(_recipe(left), _recipe(right))
    if op.target is aten.baddbmm.default:
        if op["beta"] not in (0, 1) or not isinstance(op["alpha"], int | float):
            return None
        added = op["self"] if op["beta"] == 1 else None
        return Product(_recipe(op["batch1"]), _recipe(op["batch2"]), float(op["alpha"]), added)
    if op.target is aten.einsum.default and len(op["tensors"]) == 2:
        return _of_equation(op["equation"], *op["tensors"])
    return None


def _recipe(operand: Operand) -> Recipe:
    return Recipe(operand.node, operand.shape)


def _letters(term: str, ndim: int) -> list[str] | None:
    """One name per dim; the dims of an ellipsis are numbered from the right."""
    if "..." not in term:
        return list(term) if len(term) == ndim else None
    before, after = term.split("...")
    hidden = ndim - len(before) - len(after)
    if hidden < 0:
        return None
    return [*before, *(f"…{i}" for i in reversed(range(hidden))), *after]


def _of_equation(equation: str, a: Operand, b: Operand) -> Product | None:
    """before: einsum(a, b)   after: a and b permuted to `[batch, m, k]` and `[batch, k, n]`.

    Side conditions: no name twice in a term, one name summed, one name of each operand's own,
    and all others in both operands and the output, with equal sizes.
    """
    terms = equation.replace(" ", "").split("->")
    if len(terms) != 2 or terms[0].count(",") != 1:
        return None
    first, second = terms[0].split(",")
    left, right = _letters(first, a.ndim), _letters(second, b.ndim)
    if left is None or right is None:
        return None
    hidden = max(sum(n.startswith("…") for n in names) for names in (left, right))
    explicit = len(terms[1].replace("...", ""))
    out = _letters(terms[1], explicit + (hidden if "..." in terms[1] else 0))
    if out is None or any(len(set(names)) != len(names) for names in (left, right, out)):
        return None
    batch = [n for n in left if n in right and n in out]
    summed = [n for n in left if n in right and n not in out]
    rows = [n for n in left if n not in right]
    columns = [n for n in right if n not in left]
    sizes: dict[str, Size] = dict(zip(left, a.shape, strict=True))
    agree = all(sizes.get(n, s) == s for n, s in zip(right, b.shape, strict=True))
    if not agree or [len(summed), len(rows), len(columns)] != [1, 1, 1]:
        return None
    made = [*batch, *rows, *columns]
    if set(made) != set(out):
        return None
    order = tuple(made.index(n) for n in out)
    return Product(
        _recipe(a).permute([left.index(n) for n in [*batch, *rows, *summed]]),
        _recipe(b).permute([right.index(n) for n in [*batch, *summed, *columns]]),
        order=None if order == tuple(range(len(order))) else order,
    )
