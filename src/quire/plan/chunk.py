"""The chunk planner: which runs of steps to split, along what, into how many parts.

For a fixed order of steps the best plan under a budget is found exactly, by dynamic programming
over where the last region begins:

    best(j) = min over i of best(i) + seconds(region i…j at the best part that fits)

with a step run whole as the region of length one that is not split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from typing import Any

import attrs
import sympy
from torch import fx

from quire.capture.program import Program
from quire.cost.body import Body, writes_out
from quire.cost.liveness import Liveness
from quire.cost.machine import Machine
from quire.cost.model import Model, with_slack, without_slack
from quire.cost.parts import PartCosts
from quire.flow.propagate import Spread, Storage
from quire.flow.relation import Join, Span
from quire.plan.signature import signatures

WINDOW = 96
"""Longest run of steps that one region may take."""

PARTS = (8192, 4096, 2048, 1024, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1)

JOINS = frozenset({Join.CONCAT, Join.WITHIN, Join.SUM, Join.MAX, Join.MIN, Join.MEAN})


@cache
def part_sizes(size: int, most: int) -> tuple[int, ...]:
    """Part sizes to try for `size` units, none above `most`, largest first.

    Each makes parts as equal as can be: 4097 units in parts of at most 1024 are five of 820, as a
    last part of one unit would cost nearly as much as a whole one.
    """
    tried = (-(-size // -(-size // n)) for n in (size, *PARTS) if 0 < n <= size)
    return tuple(dict.fromkeys(n for n in tried if n <= most))


Step = Callable[[str, int, int], None]


@attrs.define(eq=False)
class Candidate:
    """A region `length` steps long that ends at some step, split along `axis` of its last one.

    Offsets count back from its end, so that equal runs of steps share it. `held` are the bytes of
    its outputs that need room of their own, `reuse` pairs of offsets (output, dying input).
    """

    length: int
    axis: int
    size: int
    body: Body
    held: int
    reuse: tuple[tuple[int, int], ...]
    _seconds: dict[int, float] = attrs.field(factory=dict)
    _best: dict[int, tuple[float, int, int] | None] = attrs.field(factory=dict)

    def scratch(self, n: int) -> int:
        return self.body.scratch(n)

    def seconds(self, n: int) -> float:
        if n not in self._seconds:
            self._seconds[n] = self.body.seconds(n, self.held)
        return self._seconds[n]

    def choices(self) -> tuple[int, ...]:
        return part_sizes(self.size, self.size)

    def best(self, room: int) -> tuple[float, int, int] | None:
        """(seconds, part, scratch) of the fastest part whose scratch fits in `room` bytes."""
        if room not in self._best:
            self._best[room] = self._best_in(room)
        return self._best[room]

    def _best_in(self, room: int) -> tuple[float, int, int] | None:
        fits = next((k for k, n in enumerate(self.choices()) if self.scratch(n) <= room), None)
        if fits is None:
            return None
        # Smaller parts than the largest that fits may win by staying in the cache.
        tried = self.choices()[fits : fits + 6]
        seconds, n = min((self.seconds(n), -n) for n in tried)
        return seconds, -n, self.scratch(-n)


@attrs.frozen
class Choice:
    """Steps `start … end` of the order: a candidate at `part` units, or one step run whole."""

    start: int
    end: int
    peak: int
    seconds: float
    candidate: Candidate | None = None
    part: int = 0


class ChunkPlanner:
    """Plans of one program, at given lengths, for any budget."""

    def __init__(
        self,
        program: Program,
        machine: Machine,
        lengths: Mapping[sympy.Symbol, int],
        *,
        order: Sequence[fx.Node] | None = None,
        threads: int = 1,
        progress: Step = lambda *_: None,
        candidates: bool = True,
    ) -> None:
        self.program, self.lengths = program, dict(lengths)
        self.storage = Storage(program, lengths)
        self.model = Model(self.storage, lengths, machine, threads)
        self.order = list(order or self.storage.steps)
        self.live = Liveness(self.storage, self.model.nbytes, self.order)
        self.index = {step: k for k, step in enumerate(self.order)}
        marks = signatures(self.storage, self.model.infos, self.order, self.live, WINDOW)
        found: dict[tuple[Any, ...], list[Candidate]] = {}
        self.candidates: list[list[Candidate]] = []
        for j in range(1, len(self.order) + 1) if candidates else ():
            key = tuple(marks[max(0, j - WINDOW) : j])
            if key not in found:
                found[key] = self._candidates(j)
            self.candidates.append(found[key])
            progress("planning", j, len(self.order))
        self.whole = [self._whole(k) for k in range(len(self.order))]

    def index_in(self, choice: Choice, step: fx.Node) -> int:
        """The index, in this choice, of the step that stands where `step` does in the run of
        steps that its candidate was worked out for."""
        assert choice.candidate is not None
        steps = choice.candidate.body.steps
        return choice.start + steps.index(step)

    def _whole(self, k: int) -> Choice:
        """Step `k` run whole; pointwise steps write over an operand that dies, where they can."""
        step = self.order[k]
        over = self.overwritten(k)
        extra = 0 if over is not None else self.model.nbytes[step]
        peak = self.live.before[k] + extra + self.model.workspace[step]
        return Choice(k, k + 1, peak, self.model.seconds(step, fresh=over is None))

    def overwritten(self, k: int) -> fx.Node | None:
        """The dying operand that step `k`, run whole, may be written over."""
        step = self.order[k]
        op, flow, info = self.program.ops[step], self.storage.flows[step], self.model.infos[step]
        if not flow.pointwise or len(info) != 1 or not writes_out(op, info[0]):
            return None
        for operand in op.operands:
            node = operand.node
            same = self.storage.base[node] is node and self.model.infos[node] == info
            twice = sum(self.storage.base[o.node] is node for o in op.operands) > 1
            if same and not twice and self.live.last.get(node) == k:
                return node
        return None

    def _candidates(self, j: int) -> list[Candidate]:
        seed = self.order[j - 1]
        found = []
        for axis in range(len(self.storage.flows[seed].axes)):
            size = int(self.storage.flows[seed].axes[axis].size)
            join = self.storage.flows[seed].axes[axis].join
            # A convolution lays its operands out anew: its channels are no saving to fold.
            layout = join.folds and self.model.kinds[seed] == "conv"
            if join not in JOINS or layout or size < 2:
                continue
            spread = Spread(self.storage, seed, axis)
            costs = PartCosts(spread, self.model)
            for i in range(j - 1, max(-1, j - 1 - WINDOW), -1):
                if not spread.grow(self.order[i]):
                    break
                if candidate := self._candidate(spread, costs, i, j):
                    found.append(candidate)
        return found

    def _candidate(self, spread: Spread, costs: PartCosts, i: int, j: int) -> Candidate | None:
        steps = self.order[i:j]
        escapes = frozenset(s for s in steps if self.live.last[s] >= j)
        snapshot = spread.snapshot()
        body = Body(snapshot, self.model, escapes, costs=costs)
        if not all(self._covered(body, step) for step in body.outputs):
            return None
        reuse = self._reuse(body, i, j)
        if spread.join is Join.WITHIN and spread.seed not in dict(reuse):
            return None
        held = sum(self.model.nbytes[s] for s in body.outputs)
        held -= sum(self.model.nbytes[out] for out, _ in reuse)
        pairs = tuple((j - self.index[out], j - self.index[base]) for out, base in reuse)
        return Candidate(j - i, spread.axis, int(spread.size), body, held, pairs)

    def _covered(self, body: Body, step: fx.Node) -> bool:
        """Whether the parts of an output, each without its halo, make up the whole of it."""
        parts = body.costs.of(step)
        if step is body.spread.seed and body.spread.join is not Join.CONCAT:
            return len(parts.writes) == 1
        for info, write in zip(self.model.infos[step], parts.writes, strict=True):
            if write is None or write.lo > 0 or write.hi < 0:
                return False
            block = int(info.shape[write.dim]) // int(write.outer)
            if int(write.scale) * int(body.spread.size) != block:
                return False
        return len(parts.writes) == 1

    def _reuse(self, body: Body, i: int, j: int) -> list[tuple[fx.Node, fx.Node]]:
        """Outputs that can be written, part by part, over an input that the region reads last.

        Each part of the input must be read, by the same units, no later than it is written.
        """
        pairs: list[tuple[fx.Node, fx.Node]] = []
        taken: set[fx.Node] = set()
        at = {step: k for k, step in enumerate(body.steps)}
        for out in body.outputs:
            write = body.writes[out]
            if write is None or body.folds or write.lo != 0 or write.hi != 0:
                continue
            own = self._within(body, out)
            write = attrs.evolve(write, lo=own.lo, hi=own.hi) if own else write
            for base, asked in body.spread.pending.items():
                if base in taken or base not in self.live.last or self.index[base] >= i:
                    continue
                if self.live.last[base] >= j or self.model.infos[base] != self.model.infos[out]:
                    continue
                if own and base is not self._rest_of(out, body.spread.axis):
                    continue
                early = all(
                    body.spread.need_of_base(node, read.need) == write
                    and (
                        # What an addition is done with is read when the addition is done.
                        at[read.reader] + (body.places[read.reader].kind == "into") < at[out]
                        or (read.reader is out and self._may_overwrite(body, out, node is base))
                    )
                    for node, read in asked
                )
                if early:
                    pairs.append((out, base))
                    taken.add(base)
                    break
        return pairs

    def _within(self, body: Body, out: fx.Node) -> Span | None:
        """Where `out` is written, if that is a stretch of it only."""
        if body.spread.join is not Join.WITHIN or out is not body.spread.seed:
            return None
        return self.storage.flows[out].axes[body.spread.axis].writes[0]

    def _rest_of(self, step: fx.Node, axis: int) -> fx.Node | None:
        """The operand that holds what no part along a WITHIN axis of `step` writes."""
        init = self.storage.flows[step].axes[axis].init
        return self.program.ops[step].operands[init].node if init is not None else None

    def _may_overwrite(self, body: Body, out: fx.Node, as_it_lies: bool) -> bool:
        # A part that is computed elsewhere and copied in has been read by then.
        return body.places[out].copied or (as_it_lies and self.storage.flows[out].pointwise)

    def plan(self, budget: int | None) -> list[Choice] | None:
        """The fastest choices whose peak stays within `budget` bytes, or None."""
        budget = None if budget is None else without_slack(budget)
        best: list[tuple[float, Choice | None]] = [(0.0, None)]
        for j in range(1, len(self.order) + 1):
            options: list[tuple[float, Choice | None]] = []
            whole = self.whole[j - 1]
            if budget is None or whole.peak <= budget:
                options.append((best[j - 1][0] + whole.seconds, whole))
            for candidate in self.candidates[j - 1]:
                i = j - candidate.length
                if i < 0 or best[i][0] == float("inf"):
                    continue
                held = self.live.before[i] + candidate.held
                room = (1 << 60) if budget is None else budget - held
                if room < 0:
                    continue
                chosen = candidate.best(room)
                if chosen is None:
                    continue
                seconds, n, scratch = chosen
                total = best[i][0] + seconds
                if options and total >= options[-1][0]:
                    continue
                options.append((total, Choice(i, j, held + scratch, seconds, candidate, n)))
            best.append(min(options, key=lambda o: o[0], default=(float("inf"), None)))
        if best[-1][0] == float("inf"):
            return None
        choices, j = [], len(self.order)
        while j:
            choice = best[j][1]
            assert choice is not None
            choices.append(choice)
            j = choice.start
        return choices[::-1]

    @cached_property
    def fastest(self) -> float:
        """Seconds of the fastest plan for any budget."""
        choices = self.plan(None)
        assert choices is not None
        return sum(c.seconds for c in choices)

    def floor(self) -> tuple[int, list[Choice]]:
        """The lowest peak of any plan, and the fastest plan that has it."""
        best: list[int] = [0]
        for j in range(1, len(self.order) + 1):
            lowest = max(best[j - 1], self.whole[j - 1].peak)
            for c in self.candidates[j - 1]:
                if j >= c.length:
                    held = self.live.before[j - c.length] + c.held + c.scratch(c.choices()[-1])
                    lowest = min(lowest, max(best[j - c.length], held))
            best.append(lowest)
        lowest = with_slack(best[-1])
        choices = self.plan(lowest)
        assert choices is not None
        return lowest, choices

    @property
    def baseline_bytes(self) -> int:
        """Peak of the program as captured, each step run whole into new memory."""
        steps = enumerate(self.order)
        peaks = (
            self.live.before[k] + self.model.nbytes[s] + self.model.workspace[s] for k, s in steps
        )
        return with_slack(max(peaks, default=0))

    @property
    def baseline_seconds(self) -> float:
        return sum(self.model.seconds(s) for s in self.order)
