"""How the next tokens of a request are chosen, and where its rows end."""

from __future__ import annotations

from typing import Any

import attrs
import torch

from quire.capture.pick import draws, pick


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
