"""Rounding: what is said of it before a run holds in it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import quire
from quire.verify.poly import poly, variable
from quire.verify.rounding import gamma, roundings
from quire.verify.term import bind, read


class Product(nn.Module):
    def __init__(self, inner: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(24, inner))

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x * 2, self.weight)  # doubling is exact


def test_a_sum_rounds_once_a_term() -> None:
    total = bind("sum", poly(100), lambda j: read("x", [j]))
    assert roundings(total) == 100
    length = variable("S", [2], [4096])
    assert roundings(bind("sum", length, lambda j: read("x", [j]))) == 4096


@pytest.mark.parametrize("inner", [7, 300, 4001])
def test_measured_errors_respect_the_bound(inner: int) -> None:
    model, x = Product(inner).eval(), torch.randn(1, 257, inner)
    small = quire.chunk(model, (x,), memory="min")
    assert small.plan.regions and small.certificate is not None
    ((_, said),) = small.certificate.rounding
    assert f"m ≤ {inner + 2}" in said, said
    with torch.no_grad():
        apart = (small(x) - model(x)).abs()
        sizes = 2 * x.double().abs() @ model.weight.double().abs().T
        assert bool((apart <= 2 * gamma(inner + 2, torch.float32) * sizes).all())


def test_the_same_order_gives_the_same_bits() -> None:
    model, x = Product(64).eval(), torch.randn(1, 16, 64)
    whole = quire.chunk(model, (x,), memory="1GiB")
    assert not whole.plan.regions and whole.certificate is not None
    assert whole.certificate.rounding == (("output 0", "same order"),)
    with torch.no_grad():
        assert torch.equal(whole(x), model(x))


def test_the_coarsest_dtype_on_the_way_decides() -> None:
    """Float32 in and out, and bfloat16 between them."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(24, 64, dtype=torch.bfloat16))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x.to(torch.bfloat16), self.weight).float()

    model, x = Mixed().eval(), torch.randn(1, 256, 64)
    small = quire.chunk(model, (x,), memory="min")
    assert small.plan.regions and small.certificate is not None
    ((_, said),) = small.certificate.rounding
    bound = float(said.rsplit("= ", 1)[1])
    assert 2 * gamma(64, torch.bfloat16) < bound < 2 * gamma(68, torch.bfloat16)
