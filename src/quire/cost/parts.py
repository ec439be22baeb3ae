"""Parts of tensors: their facts, their bytes as a function of the part size, and their time."""

from __future__ import annotations

from typing import NamedTuple

from torch import fx

from quire.capture.program import TensorInfo
from quire.cost.kernel_call import merges
from quire.cost.model import LARGE, Model, rows_of
from quire.cost.time import Work, op_seconds
from quire.flow.outs import ADDS, ROWS_BLOCK, adds_into
from quire.flow.propagate import Cut, Spread, Storage, reads_of, writes_of
from quire.flow.relation import Span


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


class StepParts:
    """What one step reads and writes for a part of `n` units of a loop over `size`, and what that
    takes. It follows from the step, its cut and the loop alone: regions share it.

    A part made in the loop is dense, one of a tensor from outside is a slice with the strides of
    the whole. Where nothing is said of `outside`, the tensors from outside the region that the
    step reads, all that other steps make is taken to be made in the loop.
    """

    def __init__(
        self, storage: Storage, model: Model, step: fx.Node, cut: Cut, size: int, *, folded: bool
    ) -> None:
        self.storage, self.model, self.step, self.size = storage, model, step, size
        self.folded = folded
        axis = storage.flows[step].axes[cut.axis]
        self.needs: tuple[Span | None, ...] = tuple(reads_of(axis, cut))
        self.writes: tuple[Span | None, ...] = tuple(writes_of(axis, cut))
        operands = storage.program.ops[step].operands
        self._infos = [model.infos[o.node][0] for o in operands]
        self._bases = [storage.base[o.node] for o in operands]
        self._masked = axis.target is not None
        self.pointwise = storage.flows[step].pointwise
        self.gemm = model.kinds[step] == "gemm"
        self._read = [part_bytes(i, n) for i, n in zip(self._infos, self.needs, strict=True)]
        self.written = tuple(
            part_bytes(i, w) for i, w in zip(model.infos[step], self.writes, strict=True)
        )
        self._seconds: dict[int, float] = {}
        self._workspace: dict[tuple[int, frozenset[fx.Node]], int] = {}
        self._laid: dict[tuple[int, frozenset[fx.Node]], float] = {}

    def made(self, n: int) -> int:
        """Bytes of the part."""
        return sum(b.at(n) for b in self.written)

    def seconds(self, n: int) -> float:
        """Time of the step over the whole loop."""
        if n not in self._seconds:
            self._seconds[n] = self._work_seconds(n)
        return self._seconds[n]

    def seconds_apart(self, n: int, outside: frozenset[fx.Node]) -> float:
        """What a GEMM takes more than `seconds` has for it, as it reads slices of `outside`."""
        return self._relayout(n, outside) - self._relayout(n)

    def workspace(self, n: int, outside: frozenset[fx.Node] = frozenset()) -> int:
        if self.pointwise:
            return self.model.workspace[self.step]
        key = n, outside
        if key not in self._workspace:
            self._workspace[key] = self._workspace_of(n, outside)
        return self._workspace[key]

    def _work_seconds(self, n: int) -> float:
        model, step = self.model, self.step
        count = -(-self.size // n)
        flow, kind = self.storage.flows[step], model.kinds[step]
        read = sum(b.at(n) for b in self._read)
        written = self.made(n)
        flops = float(flow.flops)
        if self.folded:
            written *= 3
        else:
            flops *= written * count / max(model.nbytes[step], 1)
        if kind == "attention" and self.storage.program.ops[step].get("is_causal"):
            flops /= 2
            read *= 0.6
        info = model.infos[step][0]
        rows = rows_of(kind, part_info(info, self.writes[0], n))
        fresh = written if written >= LARGE else 0
        work = Work(
            kind, flops, read * count, written * count, fresh * count, count, rows, info.dtype
        )
        views = count * model.machine.rates.overhead["view"] * (1 + len(self.needs))
        again = self._relayout(n) if self.gemm else 0.0
        return op_seconds(work, model.machine) + views + again

    def _relayout(self, n: int, outside: frozenset[fx.Node] = frozenset()) -> float:
        """Time in which a GEMM lays its operands out anew, over the whole loop."""
        key = n, outside
        if key not in self._laid:
            operands, extra = self._operands(n, outside), self.workspace(n, outside)
            again = self.model.relayout(self.step, operands, extra)
            self._laid[key] = -(-self.size // n) * again
        return self._laid[key]

    def _workspace_of(self, n: int, outside: frozenset[fx.Node]) -> int:
        model, step = self.model, self.step
        operands = self._operands(n, outside)
        outputs = tuple(
            part_info(i, w, n) for i, w in zip(model.infos[step], self.writes, strict=True)
        )
        extra = sum(
            int(i.nbytes)
            for i, need in zip(operands, self.needs, strict=True)
            if need is not None and (need.fill is not None or need.outer != 1)
        )
        write = self.writes[0]
        if self.storage.program.ops[step].target in ADDS and write is not None:
            before = [int(n) for n in outputs[0].shape[: write.dim]]
            apart = any(n > 1 for n in before)
            if apart or not merges(operands[0], range(operands[0].ndim - 1)):
                # Rows that do not lie together are copied block by block.
                extra += sum(min(ROWS_BLOCK, int(i.nbytes)) for i in (operands[0], outputs[0]))
        if self._masked:
            # The mask of the rows.
            query, key = operands[0], operands[1]
            extra += int(query.shape[-2]) * int(key.shape[-2]) * query.dtype.itemsize
        return model.workspace_of_part(step, operands, outputs) + extra

    def _operands(self, n: int, outside: frozenset[fx.Node]) -> tuple[TensorInfo, ...]:
        """What the step reads for a part."""
        inside = (base in self.model.nbytes and base not in outside for base in self._bases)
        return tuple(
            part_info(info, need, n, dense=dense)
            for info, need, dense in zip(self._infos, self.needs, inside, strict=True)
        )


class PartCosts:
    """Bytes and seconds of the parts of a spread's steps, worked out as the spread grows and
    shared by every region that is cut from it."""

    def __init__(self, spread: Spread, model: Model) -> None:
        self.spread, self.model = spread, model
        self._steps: dict[fx.Node, StepParts] = {}
        self._order: list[fx.Node] = spread.steps
        self._into: dict[fx.Node, StepParts | None] = {}
        self._sums: dict[int, list[float]] = {}
        self._most: dict[int, list[int]] = {}

    def of(self, step: fx.Node) -> StepParts:
        found = self._steps.get(step)
        if found is None:
            spread, cut = self.spread, self.spread.cuts[step]
            folded = step is spread.seed and spread.join.folds
            key = step, cut, int(spread.size), folded
            shared = self.model.parts
            if key not in shared:
                shared[key] = StepParts(
                    spread.storage, self.model, step, cut, int(spread.size), folded=folded
                )
            found = self._steps[step] = shared[key]
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
            most.append(max(most[-1], self.of(self._order[len(most) - 1]).workspace(n)))
        return most[length]

    def _step_seconds(self, step: fx.Node, n: int) -> float:
        """Time of one step; what is written into the addition that reads it saves that one."""
        if step not in self._into:
            self._into[step] = self._addition(step)
        seconds, addition = self.of(step).seconds(n), self._into[step]
        return seconds if addition is None else max(seconds - addition.seconds(n), 0.0)

    def _addition(self, step: fx.Node) -> StepParts | None:
        """The addition that `step` writes into, if it runs right after."""
        found = adds_into(self.spread.storage, step)
        if found in self._order and self._order[self._order.index(found) + 1] is step:
            return self.of(found)
        return None
