"""The kernels of emitted code against torch and index arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.runtime import kernels

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@st.composite
def intervals(draw: st.DrawFn) -> tuple[list[int], int, int, int, int]:
    """A shape, a dim of it in blocks, and an interval that may reach beyond the block."""
    shape = draw(SHAPES)
    dim = draw(st.integers(0, len(shape) - 1))
    outer = draw(st.integers(1, 3))
    size = shape[dim]
    shape[dim] = size * outer
    lo = draw(st.integers(-3, size + 2))
    hi = draw(st.integers(lo, size + 3))
    return shape, dim, outer, lo, hi


def indices(size: int, outer: int, lo: int, hi: int) -> list[int]:
    block = size // outer
    return [r * block + i for r in range(outer) for i in range(lo, hi) if 0 <= i < block]


@settings(deadline=None, max_examples=80)
@given(intervals())
def test_part_takes_the_interval_of_each_block(drawn: Any) -> None:
    shape, dim, outer, lo, hi = drawn
    x = torch.randn(shape)
    want = x.index_select(dim, torch.tensor(indices(shape[dim], outer, lo, hi), dtype=torch.long))
    torch.testing.assert_close(kernels.part(x, dim, lo, hi, outer), want, rtol=0, atol=0)


@settings(deadline=None, max_examples=80)
@given(intervals(), st.sampled_from([0.0, 1.5, -float("inf")]))
def test_part_fills_what_lies_outside(drawn: Any, fill: float) -> None:
    shape, dim, outer, lo, hi = drawn
    x = torch.randn(shape)
    block = shape[dim] // outer
    rows = [
        x.select(dim, r * block + i) if 0 <= i < block else torch.full_like(x.select(dim, 0), fill)
        for r in range(outer)
        for i in range(lo, hi)
    ]
    got = kernels.part(x, dim, lo, hi, outer, fill)
    if not rows:
        assert got.shape[dim] == 0
    else:
        torch.testing.assert_close(got, torch.stack(rows, dim), rtol=0, atol=0)


@settings(deadline=None, max_examples=80)
@given(intervals())
def test_put_writes_the_interval_of_each_block_and_nothing_else(drawn: Any) -> None:
    shape, dim, outer, lo, hi = drawn
    block = shape[dim] // outer
    lo, hi = max(lo, 0), min(hi, block)
    at = torch.tensor(indices(shape[dim], outer, lo, hi), dtype=torch.long)
    out = torch.zeros(shape)
    x = torch.randn([len(at) if d == dim else s for d, s in enumerate(shape)])
    want = out.index_copy(dim, at, x)
    kernels.put(out, x, dim, min(lo, block), max(min(lo, block), hi), outer)
    torch.testing.assert_close(out, want, rtol=0, atol=0)


def test_the_parts_put_back_are_the_whole() -> None:
    x = torch.randn(3, 4 * 7, 2)
    out = torch.full_like(x, torch.nan)
    for a in range(0, 7, 3):
        kernels.put(out, kernels.part(x, 1, a, min(a + 3, 7), 4), 1, a, min(a + 3, 7), 4)
    assert torch.equal(out, x)


def buffers(*shape: int) -> dict[str, torch.Tensor]:
    """Places for a tensor of `shape`: dense, and with strides of other kinds."""
    *batch, last = shape
    *first, rows = batch
    return {
        "dense": torch.empty(shape),
        "rows of a larger one": torch.empty(*first, rows + 3, last).narrow(-2, 1, rows),
        "columns of a larger one": torch.empty(*batch, last + 3).narrow(-1, 2, last),
        "transposed": torch.empty(*first, last, rows).transpose(-1, -2),
        "dims reversed": torch.empty(shape[::-1]).permute(*reversed(range(len(shape)))),
    }  # fmt: skip


PLACES = list(buffers(2, 3))


def inputs(*shape: int) -> list[torch.Tensor]:
    """Tensors of `shape` that are laid out in the same ways."""
    return [t.copy_(torch.randn(shape)) for t in buffers(*shape).values()]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "shape", [(5, 4), (3, 5, 4), (1, 5, 4), (2, 3, 5, 4), (2, 0, 4), (3, 1, 4)]
)
def test_linear(shape: tuple[int, ...], bias: bool, place: str) -> None:
    w, b = torch.randn(6, 4), torch.randn(6) if bias else None
    for x in inputs(*shape):
        out = buffers(*shape[:-1], 6)[place].fill_(torch.nan)
        kernels.linear(x, w, b, out=out)
        torch.testing.assert_close(out, F.linear(x, w, b), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((5, 4), (4, 6)),
        ((3, 5, 4), (3, 4, 6)),
        ((2, 3, 5, 4), (2, 3, 4, 6)),
        ((2, 1, 5, 4), (2, 1, 4, 6)),
        ((2, 3, 5, 4), (4, 6)),
        ((2, 3, 5, 4), (3, 4, 6)),
        ((2, 1, 5, 4), (1, 3, 4, 6)),
        ((2, 0, 5, 4), (2, 0, 4, 6)),
        ((2, 3, 5, 0), (2, 3, 0, 6)),
    ],
)
def test_matmul(a: tuple[int, ...], b: tuple[int, ...], place: str) -> None:
    if a[:-2] != b[:-2] and place != "dense":
        return  # torch.matmul itself wants a dense buffer to broadcast into
    for x, y in zip(inputs(*a), reversed(inputs(*b)), strict=True):
        want = torch.matmul(x, y)
        out = buffers(*want.shape)[place].fill_(torch.nan)
        kernels.matmul(x, y, out=out)
        torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_softmax_in_place(dim: int, dtype: torch.dtype) -> None:
    x = torch.randn(3, 37, 5, dtype=dtype)
    want = x.softmax(dim)
    got = kernels.softmax(x, dim, out=x)
    assert got is x
    torch.testing.assert_close(x, want, rtol=0, atol=0)


def test_softmax_to_a_wider_dtype() -> None:
    x, out = torch.randn(3, 5).bfloat16(), torch.empty(3, 5)
    kernels.softmax(x, -1, dtype=torch.float32, out=out)
    torch.testing.assert_close(out, x.softmax(-1, dtype=torch.float32), rtol=0, atol=0)


@pytest.mark.parametrize("place", ["dense", "rows of a larger one"])
@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 5), (0, 5), (2, 1)])
def test_embedding(shape: tuple[int, ...], place: str) -> None:
    table, ids = torch.randn(11, 4), torch.randint(11, shape)
    if ids.dim() > 1 and place != "dense":
        return
    out = buffers(*shape, 4)[place].fill_(torch.nan)
    kernels.embedding(table, ids, 3, out=out)
    assert torch.equal(out, F.embedding(ids, table))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("kernel", "function"),
    [
        (kernels.silu, F.silu),
        (kernels.relu, F.relu),
        (kernels.copy, torch.clone),
        (kernels.gelu, F.gelu),
    ],
)
def test_pointwise(kernel: Callable[..., Any], function: Callable[..., Any], place: str) -> None:
    if kernel is kernels.gelu and place != "dense":
        return  # flow/outs.py gives it dense buffers only
    for x in inputs(3, 5, 4):
        out = buffers(3, 5, 4)[place].fill_(torch.nan)
        kernel(x, out=out)
        torch.testing.assert_close(out, function(x))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_over_its_input(approximate: str) -> None:
    x = torch.randn(40, 37)
    want = F.gelu(x, approximate=approximate)
    torch.testing.assert_close(kernels.gelu(x, approximate=approximate, out=x), want)


def test_copy_changes_dtype() -> None:
    x, out = torch.randn(3, 5) * 9, torch.empty(3, 5, dtype=torch.int64)
    kernels.copy(x, dtype=torch.int64, memory_format=torch.contiguous_format, out=out)
    assert torch.equal(out, x.long())
