"""The choice of a next token, traced into a decode step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

COOLEST = 1e-6
"""What temperatures are raised to: a division by it leaves the largest logit alone."""

_MASK = (1 << 64) - 1


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


def draws(seed: int, positions: Sequence[int]) -> torch.Tensor:
    """Numbers in [0, 1) for the rows of a batch, `[rows]`, float32, that depend on nothing but the
    seed, the row, and its position: SplitMix64 (Steele, Lea and Flood, 2014) of a counter."""
    return torch.tensor(
        [_mix(seed, (at << 20) + row) * 2.0**-23 for row, at in enumerate(positions)],
        dtype=torch.float32,
    )


def _mix(seed: int, count: int) -> int:
    """23 bits. The exported library has the same function (`runtime/library.py`)."""
    z = (seed + (count + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return (z ^ (z >> 31)) >> 41
