"""torch's losses in a user's own training step: on 2 ranks, whose number does not divide the
sequence, against one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import quire
from tests.ranks import mesh

SIZE, CLASSES = 13, 5
WEIGHT = torch.linspace(0.5, 1.5, CLASSES)


class Data:
    """`x`, `y`: a model's scores, `[2, 13, 5]`, both of parameters; `labels` of its rows;
    `odds` of each score."""

    def __init__(self, x: Tensor, y: Tensor, labels: Tensor, odds: Tensor) -> None:
        self.x, self.y, self.labels, self.odds = x, y, labels, odds

    @property
    def rows(self) -> Tensor:
        return self.x.flatten(0, 1)

    @property
    def others(self) -> Tensor:
        return self.y.flatten(0, 1)

    @property
    def classes(self) -> Tensor:
        return self.labels.flatten()

    @property
    def logs(self) -> Tensor:
        return F.log_softmax(self.rows, -1)

    @property
    def signs(self) -> Tensor:
        return 2 * (self.odds > 0.5).to(self.x.dtype) - 1


def _by_rows(how: str) -> str:
    """A mean over elements is not what kl_div is: torch warns of it."""
    return "batchmean" if how == "mean" else how


LOSSES: dict[str, Callable[[Data, str], Tensor]] = {
    "mse": lambda d, how: F.mse_loss(d.x, d.odds, reduction=how),
    "mse of what is kept still": lambda d, how: F.mse_loss(d.x, d.y.detach(), reduction=how),
    "mse of two": lambda d, how: F.mse_loss(d.x, d.y, reduction=how),
    "l1": lambda d, how: F.l1_loss(d.x, d.odds, reduction=how),
    "smooth l1": lambda d, how: F.smooth_l1_loss(d.x, d.y, reduction=how, beta=0.5),
    "huber": lambda d, how: F.huber_loss(d.x, d.odds, reduction=how, delta=0.3),
    "bce": lambda d, how: F.binary_cross_entropy(d.x.sigmoid(), d.odds, WEIGHT, reduction=how),
    "bce of logits": lambda d, how: F.binary_cross_entropy_with_logits(d.x, d.odds, reduction=how),
    "bce of logits, weighed": lambda d, how: F.binary_cross_entropy_with_logits(
        d.x, d.odds, WEIGHT, reduction=how, pos_weight=WEIGHT + 1
    ),
    "nll": lambda d, how: F.nll_loss(d.logs, d.classes, reduction=how),
    "nll, weighed": lambda d, how: F.nll_loss(
        d.logs, d.classes, WEIGHT, ignore_index=2, reduction=how
    ),
    "cross entropy": lambda d, how: F.cross_entropy(d.rows, d.classes, reduction=how),
    "cross entropy by sequence": lambda d, how: F.cross_entropy(
        d.x.transpose(1, 2), d.labels, reduction=how
    ),
    "cross entropy, smoothed": lambda d, how: F.cross_entropy(
        d.rows, d.classes, WEIGHT, ignore_index=2, reduction=how, label_smoothing=0.1
    ),
    "cross entropy of odds": lambda d, how: F.cross_entropy(
        d.rows, F.softmax(d.odds.flatten(0, 1), -1), WEIGHT, reduction=how, label_smoothing=0.1
    ),
    "kl": lambda d, how: F.kl_div(d.logs, F.softmax(d.others, -1), reduction=_by_rows(how)),
    "kl of logs": lambda d, how: F.kl_div(
        d.logs, F.log_softmax(d.others, -1), reduction=_by_rows(how), log_target=True
    ),
    "gaussian": lambda d, how: F.gaussian_nll_loss(
        d.x, d.odds, F.softplus(d.y), full=True, reduction=how
    ),
    "poisson": lambda d, how: F.poisson_nll_loss(d.x, 3 * d.odds, reduction=how),
    "soft margin": lambda d, how: F.soft_margin_loss(d.x, d.signs, reduction=how),
    "multilabel soft margin": lambda d, how: F.multilabel_soft_margin_loss(
        d.rows, d.odds.flatten(0, 1).round(), reduction=how
    ),
    "multi margin": lambda d, how: F.multi_margin_loss(d.rows, d.classes, reduction=how),
    "cosine embedding": lambda d, how: F.cosine_embedding_loss(
        d.rows, d.others, d.signs[..., 0].flatten(), margin=0.1, reduction=how
    ),
    "margin ranking": lambda d, how: F.margin_ranking_loss(
        d.rows[:, 0], d.others[:, 1], d.signs[..., 0].flatten(), margin=0.2, reduction=how
    ),
    "hinge embedding": lambda d, how: F.hinge_embedding_loss(d.x.abs(), d.signs, reduction=how),
    "triplet margin": lambda d, how: F.triplet_margin_loss(
        d.rows, d.others, d.odds.flatten(0, 1), reduction=how
    ),
}


class Step(nn.Module):
    """Attention, two heads, and a loss of theirs by its name in `LOSSES`."""

    def __init__(self, loss: str, how: str) -> None:
        super().__init__()
        self.loss, self.how = loss, how
        self.qkv, self.one, self.two = nn.Linear(8, 24), nn.Linear(8, 5), nn.Linear(8, 5)

    def forward(self, x: Tensor, labels: Tensor, odds: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed = mixed.transpose(1, 2).flatten(2)
        data = Data(self.one(mixed), torch.tanh(self.two(mixed)), labels, odds)
        found = LOSSES[self.loss](data, self.how)
        if found.dim():  # a loss of each row, weighed by the user
            found = (found * torch.linspace(1.0, 2.0, found.shape[-1])).sum()
        return found


def _case(loss: str, how: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    model = Step(loss, how)
    x, odds = torch.randn(2, SIZE, 8), torch.rand(2, SIZE, CLASSES)
    return model, (x, torch.randint(CLASSES, (2, SIZE)), odds)


def _found(model: Any, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    loss = model(*batch)
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def _on_ranks(loss: str, how: str) -> tuple[Any, list[str]] | None:
    here = mesh(2)
    if dist.get_rank() >= 2:  # two are enough
        return None
    model, batch = _case(loss, how)
    small: Any = quire.shard(model, batch, mesh=here, verify=False)
    return _found(small, batch), [s.node for s in small.plan.steps if s.gathers]


@pytest.mark.parametrize("how", ["mean", "sum", "none"])
@pytest.mark.parametrize("loss", LOSSES)
def test_equal_to_one_process(ranks: Any, loss: str, how: str) -> None:
    """Loss and gradients, each rank with its own rows' scores alone."""
    want = _found(*_case(loss, how))
    for got, gathered in ranks.run(_on_ranks, loss=loss, how=how)[:2]:
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
        assert not gathered
