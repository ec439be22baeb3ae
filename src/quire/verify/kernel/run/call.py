"""One call of a kernel: the arrays behind its pointers, and its workers one after another."""

from __future__ import annotations

import time
from collections.abc import Container, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor

from quire.capture.program import evaluate
from quire.kernel.ir import Buffer
from quire.verify.kernel.run.cells import Array, Cells, WrongRun
from quire.verify.kernel.run.machine import Worker
from quire.verify.kernel.run.numbers import Numbers
from quire.verify.kernel.script import epochs
from quire.verify.kernel.source import functions
from quire.verify.kernel.state import element_type
from quire.verify.kernel.tables import Tables

WORKERS = 3
SECONDS = 60.0
"""What a run may take."""

Given = Mapping[tuple[bool, str], Tensor]
"""Inputs (True, path) and weights (False, name)."""


def run_kernel(
    source: str,
    tables: Tables,
    given: Given,
    lengths: Mapping[str, int],
    numbers: Numbers,
    order: Sequence[int],
    settles: Container[str] = (),
) -> dict[str, Tensor]:
    """What the kernel leaves: "output k", and "input path" for each input that it is given.

    Between two barriers the workers go one after another, in `order`. `lengths` are in the order
    that the source counts them in; what is written to the buffers in `settles` is made canonical.
    Raises WrongRun, and Unsupported for what cannot be run.
    """
    code = functions(source)
    held = _Held(tables, given, lengths, settles)
    sizes = list(lengths.values())
    ends = time.monotonic() + SECONDS
    workers = [
        Worker(numbers, held.arrays, sizes, tables.scratch, w, len(order), ends) for w in order
    ]
    calls = 0
    for epoch in epochs(code, tables.repeats):
        for worker in workers:
            for k, call in enumerate(epoch.phases):
                worker.call(code[call.function], call.base, held.private(calls + k))
        calls += len(epoch.phases)
    return held.left()


class _Held:
    """The arrays behind a kernel's pointers."""

    def __init__(
        self, tables: Tables, given: Given, lengths: Mapping[str, int], settles: Container[str]
    ) -> None:
        self.tables, self.given, self._named = tables, given, settles
        self.lengths = {sympy.Symbol(k): v for k, v in lengths.items()}
        self.outside: dict[str, tuple[Cells, Buffer]] = {}
        arena = Cells.of(tables.arena + 8)
        cells: dict[Any, Cells] = {}
        self.arrays: list[Array] = []
        for b in tables.slots:
            if b.role == "temp":
                count = 1
                for size in self._sizes(b.shape):
                    count *= size
                self.arrays.append(Array(
                    b.name, arena, tables.offsets[b.name], b.dtype.itemsize, count,
                    element_type(b),
                    b.name in self._named,
                ))  # fmt: skip
                continue
            key = (b.role, b.target, b.order, b.scheme)
            if key not in cells:
                cells[key] = self._outside(b)
            held = cells[key]
            self.arrays.append(Array(b.target, held, 0, 1, len(held.values), element_type(b)))
            if b.role in ("input", "output"):
                self.outside[_label(b)] = (held, b)

    def private(self, call: int) -> list[bool]:
        """Which scratch arrays of a call stand for a tensor of the graph."""
        names = self.tables.private[call] if call < len(self.tables.private) else ()
        return [n in self._named for n in names]

    def _sizes(self, sizes: Sequence[Any]) -> list[int]:
        named = {str(k): v for k, v in self.lengths.items()}
        return [
            s if isinstance(s, int)
            else int(evaluate(s, {x: named[str(x)] for x in sympy.sympify(s).free_symbols}))
            for s in sizes
        ]  # fmt: skip

    def _outside(self, b: Buffer) -> Cells:
        """An input, output or weight, by element, laid out as its buffer is."""
        shape, strides = self._sizes(b.shape), self._sizes(b.strides)
        reach = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        made = Cells.of(reach if all(shape) else 0)
        value = self.given.get((b.role == "input", b.target))
        if b.role != "output" and value is not None and all(shape):
            value = value.permute(b.order) if b.order else value
            made.values.as_strided(shape, strides).copy_(value.reshape(shape))
            made.live.as_strided(shape, strides).fill_(True)
        return made

    def left(self) -> dict[str, Tensor]:
        """Outputs and inputs after the run."""
        found = {}
        for name, (cells, b) in self.outside.items():
            shape, strides = self._sizes(b.shape), self._sizes(b.strides)
            if not all(shape):
                found[name] = torch.zeros(shape, dtype=torch.float64)
                continue
            if not bool(cells.live.as_strided(shape, strides).all()):
                raise WrongRun(f"{name} is not written everywhere")
            found[name] = cells.values.as_strided(shape, strides).clone()
        return found


def _label(b: Buffer) -> str:
    if b.role == "output":
        return f"output {int(b.target.removeprefix('out'))}"
    return f"input {b.target}"
