"""Simplification: what is lifted, dropped and shared, and what is not."""

from __future__ import annotations

from typing import Any

import torch

from quire.rewrite import simplify

from .programs import aten, calls, check_equal, count, program_of

N, S, K = 2, 40, 32
LINEARS = (aten.linear.default, aten.addmm.default, aten.mm.default)
VIEWS = (aten.view.default, aten._unsafe_view.default, aten.permute.default)


def simplified(function: Any, *args: torch.Tensor, **more: Any) -> Any:
    before = program_of(function, *args, **more)
    after = simplify(before)
    check_equal(before, after, *args, tolerance=1e-6)
    again = simplify(after)
    assert [op.target for op in again.ops.values()] == [op.target for op in after.ops.values()]
    return after


def test_addmm_on_rows_becomes_linear() -> None:
    def conv1d(x: Any, w: Any, b: Any) -> Any:
        rows = torch.addmm(b, x.view(-1, K), w)
        return rows.view(N, S, 48).tanh()

    after = simplified(conv1d, torch.randn(N, S, K), torch.randn(K, 48), torch.randn(48))
    (linear,) = calls(after, aten.linear.default)
    assert linear["input"].shape == (N, S, K)
    assert linear["weight"].shape == (48, K)
    assert count(after, aten.addmm.default, aten.view.default) == 0


def test_pointwise_between_goes_along() -> None:
    def mlp(x: Any, w: Any, v: Any) -> Any:
        rows = torch.nn.functional.gelu(torch.mm(x.reshape(-1, K), w)) * 2.0
        return torch.mm(rows, v).view(N, S, K)

    after = simplified(mlp, torch.randn(N, S, K), torch.randn(K, 48), torch.randn(48, K))
    assert [op.out.ndim for op in calls(after, aten.linear.default)] == [3, 3]
    assert count(after, aten.mm.default, aten.view.default) == 0


def test_scaled_addmm_and_a_bias_matrix_stay() -> None:
    def scaled(x: Any, w: Any, b: Any) -> Any:
        return torch.addmm(b, x.view(-1, K), w, alpha=2).view(N, S, 48)

    def matrix(x: Any, w: Any, b: Any) -> Any:
        return torch.addmm(b.expand(N * S, 48), x.view(-1, K), w).view(N, S, 48)

    args = torch.randn(N, S, K), torch.randn(K, 48), torch.randn(48)
    for function in (scaled, matrix):
        assert count(simplified(function, *args), aten.addmm.default) == 1


def test_rows_that_mix_the_last_dim_stay() -> None:
    def mixed(x: Any, w: Any) -> Any:
        return torch.mm(x.view(-1, 2 * K), w).view(N, -1)

    after = simplified(mixed, torch.randn(N, S, K), torch.randn(2 * K, 48))
    assert count(after, aten.mm.default) == 1


def test_neutral_numbers_and_masks_go() -> None:
    def idle(x: Any) -> Any:
        ones = x.new_ones(N, S, 1)
        y = ((x * ones + 0.0) / 1 - torch.zeros(S, K)) * (torch.arange(S)[:, None] >= 0)
        return (1.0 * y).exp()

    after = simplified(idle, torch.randn(N, S, K))
    assert [op.target for op in after.ops.values()] == [aten.exp.default]


def test_what_changes_shape_dtype_or_value_stays() -> None:
    def busy(x: Any, i: Any) -> Any:
        wider = x[:, :1] * torch.ones(1, S, 1)
        zero = x * torch.zeros(S, K)
        return wider.exp(), (i * 1.0).exp(), zero.exp(), (1 / x).exp(), (0 - x).exp()

    after = simplified(busy, torch.randn(N, S, K), torch.arange(3))
    assert count(after, aten.mul.Tensor) == 3
    assert count(after, aten.exp.default) == 5


def test_a_returned_copy_of_an_input_stays() -> None:
    before = program_of(lambda x: (x * 1.0, x.exp()), torch.randn(3))
    after = simplify(before)
    assert after.outputs[0] is not next(after.users_inputs()).node


def test_splits_become_slices() -> None:
    def parts(x: Any) -> Any:
        a, b, c = x.split([8, 16, 8], dim=-1)
        d, e = x.chunk(2, dim=1)
        f, _ = x.unbind(0)
        return a.sum() + c.sum(), b, d, e, f

    after = simplified(parts, torch.randn(N, S, K))
    assert count(after, aten.slice.Tensor) == 5
    assert count(after, aten.select.int) == 1
    assert not any("split" in str(op.target) for op in after.ops.values())


def test_equal_calls_are_shared() -> None:
    def twice(x: Any) -> Any:
        return (x.exp() + x.exp().sum()) * torch.arange(4) + torch.arange(4)

    after = simplified(twice, torch.randn(4))
    assert count(after, aten.exp.default) == 1
    assert count(after, aten.arange.default) == 1


def test_equal_calls_that_differ_in_dtype_are_not_shared() -> None:
    after = simplified(lambda x: (x + torch.full((4,), 1), torch.full((4,), 1.0)), torch.randn(4))
    assert count(after, aten.full.default) == 2


def test_large_results_are_shared_only_for_an_operand_that_was_kept_for_them() -> None:
    big = torch.randn(300, 300)

    def again(x: Any) -> Any:
        first = (x.exp() @ x).tanh()
        return (first @ x + x.exp()).sum()

    assert count(simplified(again, big), aten.exp.default) == 2

    def replaced(x: Any) -> Any:
        bias = x.sin()
        y = ((bias + 1.0) @ x).tanh()
        return (y @ x + (bias + 1.0)).sum()

    assert count(simplified(replaced, big), aten.add.Tensor) == 2


def test_random_calls_are_not_shared() -> None:
    before = program_of(lambda x: (x + torch.rand(4), torch.rand(4)), torch.randn(4))
    assert count(simplify(before), aten.rand.default) == 2
