"""Losses written by what has a rule, while a model is captured: in its own thread alone."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quire.capture.training import export_training

BELOW = torch.full((3,), -1.0)
"""No variance: torch's own loss raises, what is captured cannot."""


def _refused() -> bool:
    try:
        F.gaussian_nll_loss(torch.ones(3), torch.zeros(3), BELOW)
    except ValueError:
        return True
    return False


class Step(nn.Module):
    """Another thread calls the loss while this one is captured."""

    def __init__(self, refused: Callable[[bool], None]) -> None:
        super().__init__()
        self.scores, self.report = nn.Linear(4, 3), refused

    def forward(self, x: Tensor) -> Tensor:
        with ThreadPoolExecutor(1) as other:
            self.report(other.submit(_refused).result())
        found = self.scores(x)
        return F.gaussian_nll_loss(found, torch.zeros_like(found), F.softplus(found))


def test_the_gaussian_loss_of_another_thread_is_torchs() -> None:
    refused: list[bool] = []
    model, x = Step(refused.append), torch.randn(2, 4)
    captured = export_training(model, (x,)).module()
    assert refused and all(refused)
    torch.testing.assert_close(captured(x), model(x))
