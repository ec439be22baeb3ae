"""One module for every length in range: outputs equal and the budget kept at each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

import quire

from .models import Call, Decoder, halos_at_both_borders, stride_two_on_odd_sizes
from .run import allocated, same

LENGTHS = Dim("length", min=12, max=512)
ODD = (12, 37, 101, 256, 511)
"""Most of them prime; none is a multiple of the parts."""


@attrs.frozen
class Dynamic:
    """A model, its arguments at a length, which of their dims vary, and budgets to try."""

    model: nn.Module
    args: Callable[[int], tuple[Tensor, ...]]
    shapes: Any
    budgets: tuple[Any, ...] = ("min", 0.3)


def decoder() -> Dynamic:
    def args(n: int) -> tuple[Tensor]:
        return (torch.randint(50, (1, n)),)

    return Dynamic(Decoder(layers=1, eager=True), args, {"ids": {1: LENGTHS}}, ("min", 0.05))


def merged_rows() -> Dynamic:
    def f(m: Any, x: Tensor) -> Tensor:
        h = torch.addmm(m.b1, x.view(-1, 8), m.w1).view(3, x.shape[1], 64)
        return x + torch.addmm(m.b2, F.gelu(h).view(-1, 64), m.w2).view(x.shape)

    weights = {"w1": torch.randn(8, 64), "w2": torch.randn(64, 8)}
    model = Call(f, b1=torch.randn(64), b2=torch.randn(8), **weights)
    return Dynamic(model, lambda n: (torch.randn(3, n, 8),), {"args": ({1: LENGTHS},)})


def two_lengths() -> Dynamic:
    def f(m: Any, x: Tensor, y: Tensor) -> Tensor:
        return torch.softmax(m.a(x) @ m.a(y).transpose(0, 1), -1) @ y

    shapes = {"args": ({0: LENGTHS}, {0: Dim("other", min=12, max=600)})}
    model = Call(f, a=nn.Linear(8, 8))
    return Dynamic(model, lambda n: (torch.randn(n, 8), torch.randn(600 - n, 8)), shapes)


def convolutions() -> Dynamic:
    model, _ = halos_at_both_borders()
    return Dynamic(model, lambda n: (torch.randn(1, 3, n, 8),), {"input": {2: LENGTHS}})


def padded_and_joined() -> Dynamic:
    def f(m: Any, x: Tensor) -> Tensor:
        h = F.pad(m.net(torch.roll(x, 3, 1)), (0, 0, 2, 1))
        return torch.cat([h, torch.flip(x, [1]), x[:, ::2].exp()], 1)

    net = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8))
    return Dynamic(
        Call(f, net=net), lambda n: (torch.randn(2, n, 8),), {"args": ({1: LENGTHS},)}, ("min", 0.5)
    )


@pytest.mark.parametrize(
    "make", [decoder, merged_rows, two_lengths, convolutions, padded_and_joined]
)
def test_every_length(make: Callable[[], Dynamic]) -> None:
    torch.manual_seed(0)
    case = make()
    model = case.model.eval()
    for memory in case.budgets:
        small = quire.chunk(model, case.args(128), memory=memory, dynamic_shapes=case.shapes)
        budget: Any = small.plan.budget
        assert small.plan.regions or memory != "min"
        for length in ODD:
            args = case.args(length)
            with torch.no_grad():
                want = model(*args)
            nbytes, got = allocated(lambda run=small, args=args: run(*args))
            same(got, want)
            assert nbytes <= budget


def test_strides_and_lengths() -> None:
    model, _ = stride_two_on_odd_sizes()
    shapes = {"input": {2: Dim("height", min=13, max=301)}}
    small = quire.chunk(
        model.eval(), (torch.randn(1, 3, 64, 9),), memory="min", dynamic_shapes=shapes
    )
    assert small.plan.regions
    for height in (13, 14, 15, 16, 64, 101, 300, 301):
        x = torch.randn(1, 3, height, 9)
        with torch.no_grad():
            same(small(x), model(x))
