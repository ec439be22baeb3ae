"""The emitted source of small models, kept as files to read.

QUIRE_UPDATE_GOLDEN=1 pytest tests/apply writes them anew.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

from quire.capture.export import capture
from quire.pipeline import Planning

from .models import Attention, Call, mean_of_rows, sum_of_hidden
from .run import module, same

GOLDEN = Path(__file__).parent / "golden"
UPDATE = "QUIRE_UPDATE_GOLDEN" in os.environ
LENGTHS = Dim("length", min=2, max=4096)


def mlp() -> tuple[nn.Module, Any, Any]:
    def f(m: Any, x: torch.Tensor) -> torch.Tensor:
        h = m.start(x)
        return h + m.down(torch.nn.functional.gelu(m.up(h)))

    parts = {"start": nn.Linear(8, 8), "up": nn.Linear(8, 64), "down": nn.Linear(64, 8)}
    return Call(f, **parts), (torch.randn(2, 300, 8),), {"args": ({1: LENGTHS},)}


def attention() -> tuple[nn.Module, Any, Any]:
    return Attention(heads=2, kv=2, eager=True), (torch.randn(1, 301, 16),), None


def convolutions() -> tuple[nn.Module, Any, Any]:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, stride=2, padding=1)
    )
    return model, (torch.randn(1, 3, 301, 64),), None


def fold() -> tuple[nn.Module, Any, Any]:
    return *sum_of_hidden(), None


MODELS = [mlp, attention, convolutions, fold]


def untimed(source: str) -> str:
    return re.sub(r"predicted time .*", "", source)


@pytest.mark.parametrize("make", MODELS, ids=lambda m: m.__name__)
def test_source(make: Any) -> None:
    torch.manual_seed(0)
    model, args, dynamic = make()
    model.eval()
    plan, program = Planning(capture(model, args, dynamic_shapes=dynamic)).plan("min")
    run = module(program, plan)
    path = GOLDEN / f"{make.__name__}.py.txt"
    if UPDATE:
        path.parent.mkdir(exist_ok=True)
        path.write_text(run.source)
    assert untimed(run.source) == untimed(path.read_text())
    assert "for a in range(0, size, step):" in run.source
    with torch.no_grad():
        same(run(*args), model(*args))


def test_folds_are_joined_by_their_monoid() -> None:
    model, args = mean_of_rows()
    planning = Planning(capture(model.eval(), args))
    (program, planner), *_ = [(v.program, p) for v, p in planning.planners()]
    del program
    joins = {c.body.spread.join.value for found in planner.candidates for c in found}
    assert {"concat", "mean"} <= joins
