"""Parts of tensors: their facts, their bytes as a function of the part size, and their time."""

from __future__ import annotations

from typing import NamedTuple

from torch import fx

from quire.capture.program import TensorInfo
from quire.cost.kernel_call import merges
from quire.cost.model import LARGE, Model, rows_of
from quire.cost.time import Work, op_seconds
from quire.flow.outs import ADDS, ROWS_BLOCK, adds_into
from quire.flow.propagate import Spread, reads_of, writes_of
from quire.flow.relation import Join, Span


def part_info(info: TensorInfo, need: Span | None, n: int, *, dense: bool = True) -> TensorInfo:
    """The part of `info` that `n` units of the loop make or read: densely stored in its order, or
    a slice of the whole with the whole's strides."""
    if need is None:
        return info
    block = int(info.shape[need.dim]) // int(need.outer) if need.outer else 0
    length = int(need.outer) * max(0, min(block, int(need.scale * n + need.hi - need.lo)))
    shape = tuple(length if d == need.dim else s for d, s in enumerate(info.shape))
    if not dense and need.outer == 1 and need.fill is None:
        return TensorInfo(shape, info.dtype, info.stride, info.device)
    order = sorted(range(info.ndim), key=lambda d: (-int(info.stride[d]), d))
    stride, step = [0] * info.ndim, 1
    for d in reversed(order):
        stride[d] = step
        step *= max(int(shape[d]), 1)
    return TensorInfo(shape, info.dtype, tuple(stride), info.device)


class Bytes(NamedTuple):
    """Bytes of a part of `n` units: `min(whole, unit · n + extra)`; `unit` 0 if it is not split."""

    whole: int
    unit: int = 0
    extra: int = 0

    def at(self, n: int) -> int:
        if not self.unit:
            return self.whole
        part = self.unit * n + self.extra
        return part if part < self.whole else self.whole


def part_bytes(info: TensorInfo, need: Span | None) -> Bytes:
    whole = int(info.nbytes)
    if need is None or not whole:
        return Bytes(whole)
    row = whole // int(info.shape[need.dim]) * int(need.outer)
    return Bytes(whole, row * int(need.scale), row * int(need.hi - need.lo))


class StepParts(NamedTuple):
    """What one step of a region reads and writes per part."""

    needs: tuple[Span | None, ...]
    writes: tuple[Span | None, ...]
    read_bytes: tuple[Bytes, ...]
    written_bytes: tuple[Bytes, ...]


class PartCosts:
    """Bytes and seconds of the parts of a spread's steps, worked out once as the spread grows and
    shared by every region that is cut from it.

    A part made in the loop is dense, one of a tensor from outside is a slice with the strides of
    the whole. Where nothing is said of `outside`, the tensors from outside the region that a step
    reads, all that other steps make is taken to be made in the loop.
    """

    def __init__(self, spread: Spread, model: Model) -> None:
        self.spread, self.model = spread, model
        self.steps: dict[fx.Node, StepParts] = {}
        self._order: list[fx.Node] = spread.steps
        self._sums: dict[int, list[float]] = {}
        self._most: dict[int, list[int]] = {}
        self._workspace: dict[tuple[fx.Node, int, frozenset[fx.Node]], int] = {}

    def of(self, step: fx.Node) -> StepParts:
        found = self.steps.get(step)
        if found is None:
            storage, model, cut = self.spread.storage, self.model, self.spread.cuts[step]
            axis = storage.flows[step].axes[cut.axis]
            needs, writes = tuple(reads_of(axis, cut)), tuple(writes_of(axis, cut))
            operands = storage.program.ops[step].operands
            read = (
                part_bytes(model.infos[o.node][0], n) for o, n in zip(operands, needs, strict=True)
            )
            made = (part_bytes(i, w) for i, w in zip(model.infos[step], writes, strict=True))
            found = self.steps[step] = StepParts(needs, writes, tuple(read), tuple(made))
        return found

    def seconds(self, length: int, n: int) -> float:
        """Time of the last `length` steps over the whole loop, with parts of `n` units."""
        sums = self._sums.setdefault(n, [0.0])
        while len(sums) <= length:
            sums.append(sums[-1] + self._step_seconds(self._order[len(sums) - 1], n))
        return sums[length]

    def most_workspace(self, length: int, n: int) -> int:
        """The largest workspace among the last `length` steps, with parts of `n` units."""
        most = self._most.setdefault(n, [0])
        while len(most) <= length:
            most.append(max(most[-1], self.workspace(self._order[len(most) - 1], n)))
        return most[length]

    def _step_seconds(self, step: fx.Node, n: int) -> float:
        seconds = self._own_seconds(step, n)
        addition = adds_into(self.spread.storage, step)
        if addition in self._order and self._order[self._order.index(addition) + 1] is step:
            seconds = max(seconds - self._own_seconds(addition, n), 0.0)
        return seconds

    def seconds_apart(self, step: fx.Node, n: int, outside: frozenset[fx.Node]) -> float:
        """What `step` takes more than `seconds` has for it, as it reads slices of `outside`."""
        if self.model.kinds[step] != "gemm":
            return 0.0
        return self._own_seconds(step, n, outside) - self._own_seconds(step, n)

    def _own_seconds(
        self, step: fx.Node, n: int, outside: frozenset[fx.Node] = frozenset()
    ) -> float:
        model, spread, parts = self.model, self.spread, self.of(step)
        count = -(-int(spread.size) // n)
        flow, kind = spread.storage.flows[step], model.kinds[step]
        read = sum(b.at(n) for b in parts.read_bytes)
        written = sum(b.at(n) for b in parts.written_bytes)
        flops = float(flow.flops)
        if spread.join is not Join.CONCAT and step is spread.seed:
            written *= 3
        else:
            flops *= written * count / max(model.nbytes[step], 1)
        if kind == "attention" and spread.storage.program.ops[step].get("is_causal"):
            flops /= 2
            read *= 0.6
        info = model.infos[step][0]
        rows = rows_of(kind, part_info(info, parts.writes[0], n))
        fresh = written if written >= LARGE else 0
        work = Work(
            kind, flops, read * count, written * count, fresh * count, count, rows, info.dtype
        )
        views = count * model.machine.rates.overhead["view"] * (1 + len(parts.needs))
        again = 0.0
        if kind == "gemm":
            operands, extra = self._operands(step, n, outside), self.workspace(step, n, outside)
            again = count * model.relayout(step, operands, extra)
        return op_seconds(work, model.machine) + views + again

    def workspace(self, step: fx.Node, n: int, outside: frozenset[fx.Node] = frozenset()) -> int:
        model = self.model
        if self.spread.storage.flows[step].pointwise:
            return model.workspace[step]
        key = step, n, outside
        if key not in self._workspace:
            self._workspace[key] = self._workspace_of(*key)
        return self._workspace[key]

    def _workspace_of(self, step: fx.Node, n: int, outside: frozenset[fx.Node]) -> int:
        model, storage, parts = self.model, self.spread.storage, self.of(step)
        operands = self._operands(step, n, outside)
        outputs = tuple(
            part_info(i, w, n) for i, w in zip(model.infos[step], parts.writes, strict=True)
        )
        extra = sum(
            int(i.nbytes)
            for i, need in zip(operands, parts.needs, strict=True)
            if need is not None and (need.fill is not None or need.outer != 1)
        )
        write = parts.writes[0]
        if storage.program.ops[step].target in ADDS and write is not None:
            before = [int(n) for n in outputs[0].shape[: write.dim]]
            apart = any(n > 1 for n in before)
            if apart or not merges(operands[0], range(operands[0].ndim - 1)):
                # Rows that do not lie together are copied block by block.
                extra += sum(min(ROWS_BLOCK, int(i.nbytes)) for i in (operands[0], outputs[0]))
        target = storage.flows[step].axes[self.spread.cuts[step].axis].target
        if target is not None:
            # The mask of the rows.
            query, key = operands[0], operands[1]
            extra += int(query.shape[-2]) * int(key.shape[-2]) * query.dtype.itemsize
        return model.workspace_of_part(step, operands, outputs) + extra

    def _operands(
        self, step: fx.Node, n: int, outside: frozenset[fx.Node]
    ) -> tuple[TensorInfo, ...]:
        """What `step` reads for a part: parts made in the loop are dense, others are slices."""
        storage, infos = self.spread.storage, self.model.infos
        operands = storage.program.ops[step].operands
        bases = [storage.base[o.node] for o in operands]
        inside = [base in self.model.nbytes and base not in outside for base in bases]
        return tuple(
            part_info(infos[o.node][0], need, n, dense=dense)
            for o, need, dense in zip(operands, self.of(step).needs, inside, strict=True)
        )
