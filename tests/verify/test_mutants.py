"""A hundred seeded lies about small programs: none is accepted, and no honest program refused."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from quire.apply.chunk import apply_chunks
from quire.capture.export import export, from_exported
from quire.pipeline import Planning
from quire.verify.prove import prove
from quire.verify.witness import search
from tools.mutate import mutants

EACH = 20


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        q, k, v = (f(x).view(b, s, 2, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        seen = torch.ones(s, s, dtype=torch.bool).tril()
        scores = (q @ k.transpose(-1, -2) / 2).masked_fill(~seen, float("-inf"))
        return (torch.softmax(scores, -1) @ v).transpose(1, 2).reshape(b, s, 8)


class Eager(nn.Module):
    """Attention that no kernel takes: its weights are squared."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x @ x.transpose(-1, -2), -1).square() @ x


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 64), nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ torch.sin(x).transpose(-1, -2)).mean(-1) + x.sum(-1)


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, stride=2, padding=1)
    )


MODELS = {
    "attention": (Attention, (1, 29, 8)),
    "eager": (Eager, (2, 31, 4)),
    "block": (Block, (2, 37, 8)),
    "mean": (Mean, (1, 33, 4)),
    "convolutions": (convolutions, (1, 2, 29, 6)),
}


@pytest.mark.parametrize("name", MODELS)
def test_no_lie_is_accepted(name: str) -> None:
    make, shape = MODELS[name]
    captured = from_exported(export(make().eval(), (torch.randn(shape),), None, None))
    plan, program = Planning(captured).plan("min")
    assert plan.regions
    source = apply_chunks(program, plan).text
    honest = prove(program, source, captured=captured, witness=False)
    assert honest.verdict == "proved", honest.reason
    told: Counter[str] = Counter()
    for mutant in mutants(source, 0):
        found = prove(program, mutant.source, witness=False)
        if found.verdict == "proved":
            # A mistake that changes nothing, such as a step no part is long enough for.
            assert search(program, mutant.source) is None, mutant
            continue
        told[mutant.kind] += 1
        if told.total() == EACH:
            break
    assert told.total() >= EACH // 2
    assert len(told) >= 2, told


def test_a_dim_that_is_not_there_is_no_other_dim() -> None:
    make, shape = MODELS["block"]
    captured = from_exported(export(make().eval(), (torch.randn(shape),), None, None))
    plan, program = Planning(captured).plan("min")
    source = apply_chunks(program, plan).text
    wrong = source.replace(".narrow(1, a", ".narrow(4, a", 1)  # of three: torch raises IndexError
    assert wrong != source
    assert prove(program, wrong, witness=False).verdict != "proved"
