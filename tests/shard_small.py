"""A decoder of two layers that is captured in a second, with its length free."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.functional import cross_entropy, pad, scaled_dot_product_attention

from quire.capture.export import from_exported
from quire.capture.program import Program
from quire.capture.training import export_training


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.up, self.down = nn.Linear(8, 24), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.inner(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        out = scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2).flatten(2)
        x = x + out
        return x + self.down(torch.relu(self.up(x)))


class Small(nn.Module):
    """Positions, causal attention, labels shifted, a mean over the sequence, and its last row."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.scores = nn.Embedding(11, 8), nn.Linear(8, 11)
        self.layers = nn.ModuleList([Layer(), Layer()])

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.words(ids) * torch.arange(ids.shape[1])[:, None]
        for layer in self.layers:
            x = layer(x)
        shifted = pad(labels, (0, 1), value=-100)[:, 1:]
        loss = cross_entropy(self.scores(x).flatten(0, 1), shifted.flatten())
        return loss + x.mean(1).sum() + x[:, -1].sum()


@cache
def captured(longest: int = 64) -> tuple[nn.Module, Program]:
    torch.manual_seed(0)
    model = Small()
    ids = torch.randint(11, (2, 9))
    length = Dim("length", min=2, max=longest)
    free = {0: {1: length}, 1: {1: length}}
    return model, from_exported(export_training(model, (ids, ids.clone()), {}, free))
