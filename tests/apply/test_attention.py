"""Causal attention by rows: each part of the queries reads the keys up to its last row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quire.capture.export import capture
from quire.flow.parts import causal_rows
from quire.pipeline import Planning

from .models import Attention
from .run import check, module, one_region, planners, regions

LENGTH = 37


def by_rows(heads: int, kv: int, *, eager: bool) -> tuple[nn.Module, tuple[Tensor], Any]:
    """A plan whose one region takes the attention by rows, for any part."""
    torch.manual_seed(0)
    model = Attention(heads=heads, kv=kv, eager=eager).eval()
    args = (torch.randn(2, LENGTH, 16),)
    found = [
        (program, planner, end, candidate)
        for program, planner in planners(Planning(capture(model, args)))
        for end, candidate in regions(planner)
        for step, cut in candidate.body.spread.cuts.items()
        if planner.storage.flows[step].axes[cut.axis].target is causal_rows
    ]
    assert found
    return model, args, min(found, key=lambda f: f[3].length)


@pytest.mark.parametrize(("heads", "kv"), [(4, 4), (4, 2)])
@pytest.mark.parametrize("eager", [False, True])
def test_causal_attention_by_rows(heads: int, kv: int, eager: bool) -> None:
    model, args, (program, planner, end, candidate) = by_rows(heads, kv, eager=eager)
    with torch.no_grad():
        want = model(*args)
    for part in (1, 5, LENGTH - 1, LENGTH):
        plan = one_region(planner, end, candidate, part)
        run = module(program, plan)
        assert "causal_rows(" in run.source
        assert check(run, args, want) <= plan.peak_bytes


def test_no_row_reads_a_later_key() -> None:
    """Later keys and values may hold anything; NaN would show."""
    _, args, (program, planner, end, candidate) = by_rows(4, 2, eager=False)
    run = module(program, one_region(planner, end, candidate, 5))
    seen = args[0].clone()
    seen[:, 20:] = torch.nan
    assert torch.equal(run(seen)[:, :20], run(*args)[:, :20])
