"""Long regions of ops that read other rows of each other."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quire.apply.chunk import apply_chunks
from quire.capture.export import capture
from quire.capture.program import Program
from quire.pipeline import Planning
from quire.verify import restart
from quire.verify.prove import prove
from quire.verify.term import core


class Chain(nn.Module):
    """Small at both ends and wide between them: one region. Each convolution reads the rows beside
    its own of the one before, and of all before it through the sums."""

    def __init__(self, long: int) -> None:
        super().__init__()
        self.long = long
        self.weight = nn.Parameter(torch.randn(8, 1, 3) / 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.expand(-1, 8, -1)
        for _ in range(self.long):
            x = x + torch.tanh(F.conv1d(x, self.weight, padding=1, groups=8))
        return x.sum(1)


class Turned(nn.Module):
    """A convolution between reshapes, which may copy (SegFormer's MixFFN)."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 16), nn.Linear(16, 4)
        self.weight = nn.Parameter(torch.randn(16, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x).transpose(1, 2).reshape(1, 16, 24, 24)
        x = F.conv2d(x, self.weight, padding=1, groups=16).reshape(1, 16, 576)
        x = F.layer_norm(self.down(F.gelu(x.transpose(1, 2))), (4,))
        return x.reshape(1, 24, 24, 4).permute(0, 3, 1, 2).contiguous()


def one_region(model: nn.Module, x: Tensor, steps: int) -> tuple[Program, str]:
    torch.manual_seed(0)
    plan, program = Planning(capture(model.eval(), (x,))).plan("min")
    assert len(plan.regions) == 1
    assert len(plan.regions[0].steps) == steps
    return program, apply_chunks(program, plan).text


def chunked(long: int) -> tuple[Program, str]:
    return one_region(Chain(long), torch.ones(1, 1, 256), 3 * long + 1)


@pytest.fixture(scope="module")
def four() -> tuple[Program, str]:
    return chunked(4)


def test_terms_do_not_double_with_every_op(four: tuple[Program, str]) -> None:
    terms = []
    for program, text in (four, chunked(8)):
        assert prove(program, text).verdict == "proved"
        terms.append(len(core._table))
    assert terms[1] < 2.5 * terms[0]


def test_views_that_may_be_copies_are_left_as_they_are() -> None:
    program, text = one_region(Turned(), torch.ones(1, 576, 4), 6)
    assert "kernels.cut(" in text
    assert "reshape" in text
    assert prove(program, text).verdict == "proved"


@pytest.mark.parametrize(
    "true, lie",
    [
        ("kernels.cut(a - 3, 3 + b, 256)", "kernels.cut(a - 3, 2 + b, 256)"),
        ("kernels.cut(a - 3, 3 + b, 256)", "kernels.cut(a - 2, 3 + b, 256)"),
        ("fill=0.0", "fill=1.0"),
        ("torch.tanh(", "torch.sin("),
    ],
)
def test_a_lie_in_one_is_not_accepted(four: tuple[Program, str], true: str, lie: str) -> None:
    program, text = four
    assert true in text
    found = prove(program, text.replace(true, lie, 1), witness=False)
    assert found.verdict != "proved"


def test_a_guess_that_is_wrong_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step is compared with an op of another name: none is equal, and none is taken."""
    program, text = chunked(1)
    real = restart._name
    other = {"conv1d": "tanh", "tanh": "add", "add": "conv1d"}
    monkeypatch.setattr(restart, "_name", lambda o, n: other.get(real(o, n), ""))
    taken = []
    within = restart.Restarts.within

    def watched(self: restart.Restarts, outputs: list[torch.fx.Node]) -> None:
        taken.extend(getattr(self, "made", {}))
        within(self, outputs)

    monkeypatch.setattr(restart.Restarts, "within", watched)
    assert prove(program, text).verdict == "proved"
    assert not taken
