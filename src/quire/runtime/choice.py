"""How the next tokens of a request are chosen, and where its rows end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch

from quire.capture.pick import pick

_MASK = (1 << 64) - 1


@attrs.frozen
class Choice:
    """`temperature` 0: the likeliest. `min_p`: the least likelihood, relative to the likeliest."""

    temperature: float
    min_p: float
    seed: int

    def vectors(self, positions: torch.Tensor) -> list[torch.Tensor]:
        """Temperature, min_p and draw of each row, at the token that it stands at."""
        rows = len(positions)
        return [
            torch.full((rows,), self.temperature),
            torch.full((rows,), self.min_p),
            draws(self.seed, positions.tolist()),
        ]

    def of(self, logits: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """What the kernel picks by `logits [rows, vocabulary]`."""
        return pick(logits, *self.vectors(positions))


def ends_of(config: Any) -> tuple[torch.Tensor, int]:
    """The tokens that end a row, and what it is filled up with, by a generation config."""
    ends = config.eos_token_id
    found = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    pad = config.pad_token_id
    return torch.tensor(found, dtype=torch.long), pad if pad is not None else (found or [0])[0]


def draws(seed: int, positions: Sequence[int]) -> torch.Tensor:
    """Numbers in [0, 1) for the rows of a batch, `[rows]`, float32, that depend on nothing but the
    seed, the row, and its position: SplitMix64 (Steele, Lea and Flood, 2014) of a counter."""
    return torch.tensor(
        [_mix(seed, (at << 20) + row) * 2.0**-23 for row, at in enumerate(positions)],
        dtype=torch.float32,
    )


def _mix(seed: int, count: int) -> int:
    """23 bits. The exported library has the same function (kernel/rt/library.hpp)."""
    z = (seed + (count + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return (z ^ (z >> 31)) >> 41
