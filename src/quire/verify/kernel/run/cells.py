"""Memory of a run: what was written where, so that a read of what is not there is found."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from quire.verify.kernel.state import ELEMENTS


class WrongRun(Exception):
    """A run that does what no kernel may do: a read of what is not there, an access out of
    bounds."""


@attrs.frozen(eq=False)
class Cells:
    """One block. A value lies at the first of its bytes (or is one cell, outside the arena);
    `live` says where one begins."""

    values: Tensor
    live: Tensor

    @classmethod
    def of(cls, size: int) -> Cells:
        return cls(torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.bool))


@attrs.frozen(eq=False)
class Array:
    """`size` elements of C++ type `kind` from cell `base` on, `step` cells each. `settles`: it
    stands for a tensor of the graph."""

    name: str
    cells: Cells
    base: int
    step: int
    size: int
    kind: str
    settles: bool = False

    def _at(self, at: Tensor, mask: Tensor | None, what: str) -> Tensor:
        bad = (at < 0) | (at >= self.size)
        if mask is not None:
            bad = bad & mask
        if bool(bad.any()):
            raise WrongRun(f"{what} of {self.name} at {int(at[bad][0]) if at.dim() else int(at)}, "
                           f"which has {self.size} elements")  # fmt: skip
        return at.clamp(0, max(0, self.size - 1)) * self.step + self.base

    def load(self, at: Tensor, mask: Tensor | None) -> Tensor:
        """The elements at the indices; where `mask` is false, anything."""
        if mask is not None:
            at, mask = torch.broadcast_tensors(at, mask)
        cells = self._at(at, mask, "a read")
        there = self.cells.live[cells]
        for k in range(1, self.step):
            there = there & ~self.cells.live[cells + k]
        if mask is not None:
            there = there | ~mask
        if not bool(there.all()):
            raise WrongRun(f"{self.name} is read where nothing of it is")
        found = self.cells.values[cells]
        if self.dtype.is_floating_point:
            return found
        return found != 0 if self.dtype == torch.bool else found.long()

    def store(self, at: Tensor, values: Tensor) -> None:
        at, values = torch.broadcast_tensors(at, values)
        cells = self._at(at, None, "a write").reshape(-1)
        self.cells.values[cells] = values.reshape(-1).double()
        self.cells.live[cells] = True
        for k in range(1, self.step):
            self.cells.live[cells + k] = False

    def rows(self, at: int, count: int, step: int, width: int) -> Tensor:
        """[count, width] elements, rows `step` apart from `at` on."""
        places = at + step * torch.arange(count)[:, None] + torch.arange(width)
        return self.load(places, None)

    @property
    def dtype(self) -> torch.dtype:
        """As which it is loaded; quantised weights are read dequantised."""
        return ELEMENTS.get(self.kind.removeprefix("const "), torch.float32)
