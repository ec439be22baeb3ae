"""A kernel's phases in words, for people."""

from __future__ import annotations

from collections import Counter

import attrs

from quire.kernel.analysis import weights_of
from quire.kernel.compile import KernelPlan
from quire.kernel.ir import BLOCKS, AnyNest, Attend, Buffer, Merge, Nest, Scan, TopK, blocks


@attrs.frozen
class PhaseInfo:
    """One distinct phase: how often it runs in a call, what it computes, and the bytes of weights
    that one run of it streams."""

    function: str
    runs: int
    computes: tuple[str, ...]
    weight_bytes: int

    def __str__(self) -> str:
        times = "once" if self.runs == 1 else f"{self.runs} times"
        head = f"{self.function} ({times}, {self.weight_bytes / 2**20:.2f} MiB of weights a run)"
        return "\n".join([head, *(f"  {line}" for line in self.computes)])


def describe(plan: KernelPlan) -> tuple[PhaseInfo, ...]:
    """The distinct phases of a kernel in order of first use."""
    runs = Counter(plan.rendered.calls)
    found: dict[int, PhaseInfo] = {}
    for phase, function in zip(plan.phases, plan.rendered.calls, strict=True):
        if function in found:
            continue
        lines = [f"every worker: {_line(n, plan)}" for n in phase.private]
        shared = phase.nests[len(phase.private) :]
        lines += [_line(n, plan) for n in shared]
        size = sum(_bytes(n) for n in phase.nests)
        found[function] = PhaseInfo(f"phase_{function}", runs[function], tuple(lines), size)
    return tuple(found.values())


def _line(nest: AnyNest, plan: KernelPlan) -> str:
    out = nest.outs[0]
    origin = plan.lowered.origin.get(out.name.removesuffix("p"), "")
    what = {Attend: "attention", Merge: "join of key blocks", TopK: "top-k", Scan: "prefix sums"}
    kind = what.get(type(nest), "")
    if isinstance(nest, Nest):
        kind = "map" if nest.fold is None else nest.fold
        if weights_of(nest) is not None:
            kind = "product with weights"
        if out.role == "input":
            kind = f"write into {out.target}"
    return f"{kind}: {origin}".rstrip(": ")


def _bytes(nest: AnyNest) -> int:
    weight = weights_of(nest)
    return 0 if weight is None else weight_bytes(weight.buffer)


def weight_bytes(buffer: Buffer) -> int:
    total = 1
    for size in buffer.shape:
        total *= int(size)
    if buffer.scheme:
        columns = int(buffer.shape[-1])
        return blocks(total // columns, columns) * BLOCKS[buffer.scheme]
    return total * buffer.dtype.itemsize


__all__ = ["PhaseInfo", "describe", "weight_bytes"]
