"""The choice of a next token, traced into a decode step."""

from __future__ import annotations

import torch

COOLEST = 1e-6
"""What temperatures are raised to: a division by it leaves the largest logit alone."""


def pick(
    logits: torch.Tensor, temperature: torch.Tensor, min_p: torch.Tensor, draw: torch.Tensor
) -> torch.Tensor:
    """A token of each row, `[rows]`, by the inverse of its distribution function at `draw`.

    `logits [rows, vocabulary]`; the others `[rows]`, float32. Words less likely than `min_p` times
    the likeliest are left out, as by transformers' `MinPLogitsWarper`. `draw` is in [0, 1) and a
    multiple of 2^-23. A temperature of 0 takes the first of the largest logits.
    """
    logits = logits.float()
    below = logits - logits.amax(-1, keepdim=True)
    weights = (below / temperature.clamp(min=COOLEST)[:, None]).exp()
    weights = torch.where(weights >= min_p[:, None], weights, 0.0)
    upto = weights.cumsum(-1)
    asked = torch.where(temperature > 0, draw, 0.0)[:, None] * upto[:, -1:]
    return (upto <= asked).sum(-1)
