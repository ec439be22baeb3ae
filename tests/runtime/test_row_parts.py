"""Rows in parts: the same results and gradients as at once, whatever the number of rows."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from quire.runtime.row_parts import in_parts


def _tensors(rows: int, outer: int, scale: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(rows)
    shape = (3, outer * rows * scale, 4)
    made = [torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2)]
    weight = torch.randn(4, 4, generator=g, dtype=torch.float64)
    return [x.requires_grad_() for x in (*made, weight)]


def _loss(found: Any) -> Tensor:
    return torch.stack([(out * out.detach().cos()).sum() for out in found]).sum()


@settings(deadline=None)
@given(st.integers(1, 13), st.integers(1, 13), st.integers(1, 3), st.integers(1, 3))
def test_equal_to_all_rows_at_once(rows: int, some: int, outer: int, scale: int) -> None:
    """Two results, one of them of another width; the last part ragged where `some` does not
    divide."""
    some = min(some, rows)
    calls = []

    def function(x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(x.shape[1])
        return (x @ weight).sin() + y, (x * y).sum(-1)

    x, y, weight = _tensors(rows, outer, scale)
    at = (1, outer, scale)
    found = in_parts(function, rows, some, [x, y], [at, at], [at, at], weight)
    assert len(calls) == -(-rows // some) and set(calls) == {outer * some * scale}
    _loss(found).backward()
    a, b, c = _tensors(rows, outer, scale)
    whole = function(a, b, c)
    _loss(whole).backward()
    assert_close(found, whole)
    assert_close((x.grad, y.grad, weight.grad), (a.grad, b.grad, c.grad))


def test_one_result_is_given_as_it_is() -> None:
    x = torch.arange(10.0)
    assert_close(in_parts(lambda r: 2 * r, 10, 4, [x], [(0, 1, 1)], [(0, 1, 1)]), 2 * x)


def test_only_one_part_is_kept_for_backward() -> None:
    """What the function makes for backward is made again, a part at a time."""
    x = torch.randn(64, 8, requires_grad=True)
    kept: list[int] = []

    def keep(t: Tensor) -> Tensor:
        kept.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        out = in_parts(lambda r: r.exp().exp().exp(), 64, 16, [x], [(0, 1, 1)], [(0, 1, 1)])
    assert sum(kept) <= x.numel()  # the parts of x, and no exp
    out.sum().backward()
    assert x.grad is not None
