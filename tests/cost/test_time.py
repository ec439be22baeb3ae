"""The roofline and the kinds of op."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from quire.cost.machine import REFERENCE
from quire.cost.time import Kind, Work, kind_of, op_seconds
from quire.flow.registry import flow_of
from quire.flow.rules import *  # noqa: F403

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from workspace_oracle import op_of

aten = torch.ops.aten
M = REFERENCE
MB = 1e6
r = torch.randn


def test_a_gemm_is_bound_by_arithmetic() -> None:
    work = Work("gemm", flops=180e9, bytes_read=4 * MB, bytes_written=4 * MB, rows=1024)
    assert op_seconds(work, M) == pytest.approx(1.0, rel=1e-3)
    assert op_seconds(work._replace(rows=5000), M) == op_seconds(work, M)


def test_a_gemm_of_one_row_is_slower_per_flop() -> None:
    work = Work("gemm", flops=1e9, rows=1024)
    assert op_seconds(work._replace(rows=1), M) > 5 * op_seconds(work, M)
    assert op_seconds(work._replace(rows=0), M) == op_seconds(work._replace(rows=1), M)


def test_dtypes() -> None:
    work = Work("gemm", flops=1e9)
    double = op_seconds(work._replace(dtype=torch.float64), M)
    assert double == pytest.approx(2 * op_seconds(work, M), rel=1e-2)
    assert op_seconds(work._replace(dtype=torch.int64), M) > double


def test_memory_is_slower_than_cache() -> None:
    large = Work("copy", bytes_read=400 * MB, bytes_written=400 * MB)
    assert op_seconds(large, M) == pytest.approx(800 * MB / M.copy_bandwidth, rel=1e-3)
    # The same in 100 parts that fit the cache.
    parts = large._replace(calls=100)
    expected = 800 * MB / M.cache_bandwidth + 100 * M.dispatch_seconds
    assert op_seconds(parts, M) == pytest.approx(expected)


def test_no_step_at_the_size_of_the_cache() -> None:
    times = [
        op_seconds(Work("copy", bytes_read=size, bytes_written=size), M)
        for size in range(1 << 20, 50 << 20, 1 << 20)
    ]
    assert all(0 < b - a < 0.5e-3 for a, b in pairwise(times))


def test_faults_are_added() -> None:
    work = Work("pointwise", bytes_read=1 * MB, bytes_written=1 * MB)
    more = op_seconds(work._replace(fresh_bytes=4096 * 1000), M) - op_seconds(work, M)
    assert more == pytest.approx(1000 * M.fault_seconds)


def test_a_view_costs_a_call() -> None:
    assert op_seconds(Work("view", bytes_read=1e9, calls=3), M) == 3 * M.view_seconds


def test_functions_count_elements() -> None:
    work = Work("transcendental", bytes_read=4 * MB, bytes_written=4 * MB)
    assert op_seconds(work, M) == pytest.approx(
        MB / M.transcendental_rate + M.dispatch_seconds, rel=1e-6
    )


@pytest.mark.parametrize(
    ("kind", "target", "args"),
    [
        ("gemm", aten.linear.default, (r(4, 8), r(6, 8), r(6))),
        ("gemm", aten.matmul.default, (r(2, 4, 8), r(2, 8, 3))),
        ("gemm", aten.bmm.default, (r(2, 4, 8), r(2, 8, 3))),
        ("attention", aten.scaled_dot_product_attention.default, (r(1, 2, 4, 8),) * 3),
        ("conv", aten.conv2d.default, (r(1, 3, 8, 8), r(4, 3, 3, 3))),
        ("conv", aten.conv1d.default, (r(1, 3, 8), r(4, 3, 3))),
        ("pointwise", aten.add.Tensor, (r(4, 8), r(4, 8))),
        ("pointwise", aten.pow.Tensor_Scalar, (r(4, 8), 2)),
        ("transcendental", aten.pow.Tensor_Scalar, (r(4, 8), 0.5)),
        ("transcendental", aten.gelu.default, (r(4, 8),)),
        ("transcendental", aten.softmax.int, (r(4, 8), -1)),
        ("reduce", aten.sum.dim_IntList, (r(4, 8), [-1])),
        ("reduce", aten.mean.dim, (r(4, 8), [-1])),
        ("reduce", aten.amax.default, (r(4, 8), [-1])),
        ("reduce", aten.layer_norm.default, (r(4, 8), [8])),
        ("reduce", aten.cumsum.default, (r(4, 8), 0)),
        ("copy", aten.cat.default, ([r(4, 8), r(4, 8)],)),
        ("copy", aten.embedding.default, (r(4, 8), torch.tensor([1, 2]))),
        ("view", aten.permute.default, (r(4, 8), [1, 0])),
        ("view", aten.slice.Tensor, (r(4, 8), 0, 1, 2)),
    ],
    ids=lambda value: str(value) if isinstance(value, torch._ops.OpOverload) else "",
)
def test_kind(kind: Kind, target: Any, args: tuple[Any, ...]) -> None:
    op, _ = op_of((target, args, {}))
    assert kind_of(op, flow_of(op)) == kind
