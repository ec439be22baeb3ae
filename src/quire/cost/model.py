"""What the planner asks of every step run whole: bytes, workspace, seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

from quire.capture.program import Op, TensorInfo
from quire.cost.contraction import relaid_bytes
from quire.cost.machine import Machine
from quire.cost.time import Kind, Work, kind_of, op_seconds
from quire.cost.workspace import SMALL, workspace_bytes
from quire.flow.propagate import Storage

ACROSS = 4.0
"""Bytes of plain traffic that take the time of one byte copied across strides: two for reading
and writing, twice for the strides (a guess between the 2 and 6 seen)."""

LARGE = 1 << 25
"""From 32 MiB on glibc maps every allocation anew, so that each page of it faults."""


SLACK = 3 << 18
"""Most bytes that Python's own objects and the allocator's small blocks are taken to add to the
tensors of one call: three times the 0.25 MiB seen. Small calls have a 64th of their tensors."""


def with_slack(nbytes: int) -> int:
    """The peak of a call whose tensors peak at `nbytes`."""
    return nbytes + min(nbytes // 64, SLACK)


def without_slack(budget: int) -> int:
    """The most bytes that tensors may take of `budget`."""
    most = max(budget * 64 // 65, budget - SLACK)
    return most + 1 if with_slack(most + 1) <= budget else most


class Model:
    """What the planner asks of every step, at given lengths and on one machine, worked out once."""

    def __init__(self, storage: Storage, lengths: Mapping, machine: Machine, threads: int) -> None:
        self.storage, self.machine, self.threads = storage, machine, threads
        program = storage.program
        self.infos: dict[fx.Node, tuple[TensorInfo, ...]] = {
            node: tuple(i.at(lengths) for i in infos) for node, infos in program.infos.items()
        }
        self.nbytes: dict[fx.Node, int] = {}
        self.kinds: dict[fx.Node, Kind] = {}
        self.workspace: dict[fx.Node, int] = {}
        self._seen: dict[tuple, int] = {}
        self.parts: dict[tuple, Any] = {}
        """What parts of steps cost: see `quire.cost.parts`."""
        for step in storage.steps:
            op = program.ops[step]
            self.nbytes[step] = sum(int(i.nbytes) for i in self.infos[step])
            self.kinds[step] = kind_of(op, storage.flows[step])
            self.workspace[step] = self._workspace(op, self._operands(op), self.infos[step])

    def _operands(self, op: Op) -> tuple[TensorInfo, ...]:
        return tuple(self.infos[o.node][0] for o in op.operands)

    def _workspace(
        self, op: Op, operands: tuple[TensorInfo, ...], outputs: tuple[TensorInfo, ...]
    ) -> int:
        key = (op.target, operands, outputs, str(op.get("is_causal")), str(op.get("dim")))
        if key not in self._seen:
            self._seen[key] = workspace_bytes(op, operands, outputs, self.threads)
        return self._seen[key]

    def workspace_of_part(
        self,
        step: fx.Node,
        operands: tuple[TensorInfo, ...],
        outputs: tuple[TensorInfo, ...],
    ) -> int:
        return self._workspace(self.storage.program.ops[step], operands, outputs)

    def seconds(self, step: fx.Node, *, fresh: bool = True) -> float:
        """The step's time when run whole; `fresh` if its output lies in new pages."""
        op, out = self.storage.program.ops[step], self.nbytes[step]
        read = sum(int(i.nbytes) for i in self._operands(op))
        flops = float(self.storage.flows[step].flops)
        kind = self.kinds[step]
        rows = rows_of(kind, self.infos[step][0])
        dtype = self.infos[step][0].dtype
        if kind == "attention" and op.get("is_causal"):
            flops /= 2
        work = Work(kind, flops, read, out, out if fresh else 0, 1, rows, dtype)
        return op_seconds(work, self.machine) + self.relayout(
            step, self._operands(op), self.workspace[step]
        )

    def relayout(self, step: fx.Node, operands: tuple[TensorInfo, ...], workspace: int) -> float:
        """Time in which a GEMM lays out anew the operands whose strides its kernel cannot take."""
        if self.kinds[step] != "gemm" or workspace <= SMALL:
            return 0.0
        traffic = relaid_bytes(operands) or ACROSS * (workspace - SMALL)
        return traffic / self.machine.copy_bandwidth


def rows_of(kind: Kind, out: TensorInfo) -> int:
    """The M of a GEMM with output `out`, or the query rows of an attention."""
    if not out.shape:
        return 1
    if kind == "attention":
        return int(out.shape[-2]) if out.ndim > 1 else 1
    return int(out.numel) // max(int(out.shape[-1]), 1)
