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
