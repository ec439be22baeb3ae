"""The whole of Quire as one column of named steps.

capture → rewrite → plan → apply → run
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import attrs
import sympy
import torch
from torch import nn
from torch.export import ExportedProgram

import quire.flow.rules  # noqa: F401  (fills the table of rules)
from quire.apply.chunk import apply_chunks
from quire.apply.halves import halve
from quire.apply.unroll import unroll
from quire.budget import Memory, parse_budget
from quire.capture.export import export, from_exported
from quire.capture.program import Program
from quire.chunked import PLAN_FILE, Chunked
from quire.cost.machine import Machine, machine
from quire.errors import BudgetError, QuireError
from quire.plan import moments
from quire.plan.build import PartSizer, build_plan, fingerprint
from quire.plan.chunk import Choice, ChunkPlanner
from quire.plan.folds import head_folds
from quire.plan.halves import own_products
from quire.plan.plan import Plan
from quire.plan.stages import read_across, staged
from quire.report.units import bytes_text
from quire.rewrite import (
    drop_masks,
    fuse_attention,
    lay_out,
    rearrange,
    settle_strides,
    share_keys,
    simplify,
)
from quire.rewrite.draft import Refused
from quire.verify.prove import certified

Progress = Callable[[str, int, int], None]


def chunk(
    model: nn.Module | ExportedProgram,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    memory: Memory = None,
    dynamic_shapes: Any = None,
    verify: bool = True,
    allow_unknown: bool = False,
    progress: Progress = lambda *_: None,
) -> Chunked:
    """`model` split into parts, so that a call allocates at most `memory` above weights and inputs.

    `args` and `kwargs` are those of one call. `memory` is a number of bytes, a text such as
    "512MiB", a fraction of the model's own peak, "min", or None for the fastest plan.
    `dynamic_shapes` is spelled as for `torch.export.export`; the module then serves every length
    in range, and the plan is made for the longest.

    With `verify` the result is proved equal to the captured model, for all inputs, lengths and part
    sizes, and carries the certificate.

    Raises CaptureError (the model cannot be captured), BudgetError (nothing fits), RefutedError
    (a run differs), UnprovedError (neither shown nor refuted, unless `allow_unknown`).
    """
    progress("capturing", 0, 0)
    exported = (
        model if isinstance(model, ExportedProgram) else export(model, args, kwargs, dynamic_shapes)
    )
    captured = from_exported(exported)
    planning = Planning(captured, progress)
    plan, program = planning.plan(memory)
    small = _compiled(exported, planning, plan, program)
    if verify:
        progress("proving", 0, 0)
        json = plan.to_json()
        small.certificate = certified(captured, program, small.source, json, allow_unknown)
    return small


def tradeoff(
    model: nn.Module | ExportedProgram,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    points: int = 12,
) -> list[Plan]:
    """Plans from the fastest to the smallest: peak against predicted time."""
    exported = (
        model if isinstance(model, ExportedProgram) else export(model, args, kwargs, dynamic_shapes)
    )
    return Planning(from_exported(exported)).curve(points)


def load(path: str | Path) -> Chunked:
    """The chunked module that `Chunked.save` wrote.

    Raises QuireError if the file holds no plan, or one made for another program.
    """
    extra = {PLAN_FILE: ""}
    exported = torch.export.load(str(path), extra_files=extra)
    if not extra[PLAN_FILE]:
        raise QuireError(
            f"{path} holds no plan of Quire's",
            allowed="files written by Chunked.save or quire chunk --out",
            fix="quire.chunk(torch.export.load(path), memory=…) plans a plain .pt2 file",
        )
    plan = Plan.from_json(extra[PLAN_FILE])
    planning = Planning(from_exported(exported))
    for variant in planning.variants():
        if fingerprint(variant.program) == plan.program:
            return _compiled(exported, planning, plan, variant.program)
    raise QuireError(
        f"the plan in {path} was made for another program, or by another version of Quire",
        fix="plan again: quire.chunk(torch.export.load(path), memory=…)",
    )


@attrs.frozen(eq=False)
class Variant:
    """The captured program after some rewrites, and lines for people about these."""

    program: Program
    notes: tuple[str, ...] = ()
    last: bool = False
    """Much is computed twice: worth a try only where nothing else fits."""


Planned = tuple[Variant, ChunkPlanner]

NEAR = 1.02
"""A plan this close to the fastest of the first variant needs no other."""


class Planning:
    """Everything that plans of one captured program share.

    The program is planned in up to four variants, made when they are first needed: rewritten to
    the fused kernels, the same in stages (`plan.stages`), with attention head by head
    (`plan.folds`), and with a state's product with itself in halves (`plan.halves`); each reaches
    lower than the one before.
    """

    def __init__(self, captured: Program, progress: Progress = lambda *_: None) -> None:
        self.captured = captured = settle_strides(captured)
        self.machine: Machine = machine(_device(captured).type)
        self.threads = torch.get_num_threads()
        self.lengths: dict[sympy.Symbol, int] = {
            s.name: s.hi if s.hi is not None else s.hint for s in captured.symbols
        }
        self.progress = progress
        self.original = self._planner(captured, candidates=False)
        notes: list[str] = []
        simple = simplify(drop_masks(simplify(captured, notes), notes))
        fused = simplify(share_keys(fuse_attention(simple, notes), notes))
        self.first = Variant(fused, tuple(notes))
        self._variants: list[Variant] = []
        self._planned: list[Planned] = []
        self._more = self.variants()

    def _planner(self, program: Program, *, candidates: bool = True) -> ChunkPlanner:
        return ChunkPlanner(
            program,
            self.machine,
            self.lengths,
            threads=self.threads,
            progress=self.progress,
            candidates=candidates,
        )

    def planners(self, *, last: bool = True) -> Iterator[Planned]:
        """The variants in turn, each with its planner; the last resort only with `last`."""
        for k in count():
            if k == len(self._variants):
                variant = next(self._more, None)
                if variant is None:
                    return
                self._variants.append(variant)
            variant = self._variants[k]
            if variant.last and not last:
                return
            if k == len(self._planned):
                self._planned.append((variant, self._planner(variant.program)))
            yield self._planned[k]

    def variants(self) -> Iterator[Variant]:
        yield self.first
        program, notes = self.first.program, self.first.notes
        first = self._planned[0][1] if self._planned else self._planner(program, candidates=False)
        laid = self._planner(lay_out(program, read_across(first.model)), candidates=False)
        runs = staged(laid.model, laid.baseline_bytes)
        stages = rearrange(laid.program, runs)
        yield Variant(stages, notes)
        if folds := head_folds(first.model):
            with suppress(Refused):  # heads that do not lie together: a fused projection's
                apart = self._planner(unroll(program, folds), candidates=False)
                runs = staged(apart.model, apart.baseline_bytes, again=False)
                note = f"{len(folds)} attentions taken head by head"
                yield Variant(rearrange(apart.program, runs), (*notes, note))
        if updates := own_products(self._planner(stages, candidates=False).model):
            with suppress(Refused):
                note = f"{len(updates)} products of a state with itself taken in halves"
                yield Variant(halve(stages, updates), (*notes, note), last=True)

    @property
    def baseline(self) -> tuple[int, float]:
        return self.original.baseline_bytes, self.original.baseline_seconds

    def plan(self, memory: Memory) -> tuple[Plan, Program]:
        """The fastest plan that keeps the budget, and the program it is for."""
        budget = parse_budget(memory, self.baseline[0])
        if budget is None:
            # The fastest that needs no more memory than the model itself, if there is one.
            found = self._fastest(self.baseline[0]) or self._fastest(None)
        elif budget == "min":
            floors = [(p.floor(), v, p) for v, p in self.planners()]
            (budget, choices), variant, planner = min(floors, key=lambda f: f[0][0])
            found = choices, variant, planner
        else:
            found = self._fastest(budget)
        if found is None:
            raise self._too_small(budget)
        choices, variant, planner = found
        return self._built(variant, planner, choices, None if memory is None else budget)

    def _fastest(self, room: int | None) -> tuple[list[Choice], Variant, ChunkPlanner] | None:
        last = (planned for planned in self.planners() if planned[0].last)
        return self._best(self.planners(last=False), room) or self._best(last, room)

    def _best(
        self, planned: Iterator[Planned], room: int | None
    ) -> tuple[list[Choice], Variant, ChunkPlanner] | None:
        best: tuple[float, list[Choice], Variant, ChunkPlanner] | None = None
        near: float | None = None
        for variant, planner in planned:
            # Later variants do more work: none is faster than the first with room enough.
            near = near or NEAR * planner.fastest
            if (choices := planner.plan(room)) is not None:
                seconds = sum(c.seconds for c in choices)
                if best is None or seconds < best[0]:
                    best = seconds, choices, variant, planner
            if best is not None and best[0] <= near:
                break
        return best and best[1:]

    def _built(
        self, variant: Variant, planner: ChunkPlanner, choices: list[Choice], budget: int | None
    ) -> tuple[Plan, Program]:
        plan = build_plan(
            planner,
            choices,
            budget=budget,
            baseline=self.baseline,
            before=moments.before(self.original),
            rewrites=variant.notes,
        )
        return plan, variant.program

    def _too_small(self, budget: int | None) -> BudgetError:
        best, program = self.plan("min")
        worst = max(best.after, key=lambda m: m.nbytes)
        nodes = {n.name: n for n in program.graph.nodes}
        binding = tuple(
            f"{h.tensor} ({bytes_text(h.nbytes)})"
            + (
                f" at {program.ops[nodes[h.tensor]].where}"
                if nodes.get(h.tensor) in program.ops
                else ""
            )
            for h in worst.holds
        )
        return BudgetError(
            f"no plan fits {budget} bytes ({bytes_text(budget or 0)}); "
            f"the best needs {best.peak_bytes} bytes ({bytes_text(best.peak_bytes)})",
            best=best,
            binding=binding,
            where=str(program.ops[nodes[worst.step]].where),
            allowed=f"memory={best.peak_bytes} or more",
            fix='memory="min" takes the best plan there is; shorter inputs need less',
        )

    def curve(self, points: int = 12) -> list[Plan]:
        """Plans over a range of budgets, from the fastest down to the smallest, equal ones once."""
        fastest, _ = self.plan(None)
        smallest, _ = self.plan("min")
        plans = [fastest]
        low, high = smallest.peak_bytes, fastest.peak_bytes
        for k in range(1, points):
            budget = int(high * (low / high) ** (k / points)) if high > low else low
            plan, _ = self.plan(max(budget, low))
            if plan.peak_bytes < plans[-1].peak_bytes:
                plans.append(plan)
        if smallest.peak_bytes < plans[-1].peak_bytes:
            plans.append(smallest)
        return plans


def _compiled(
    exported: ExportedProgram, planning: Planning, plan: Plan, program: Program
) -> Chunked:
    source = apply_chunks(program, plan).text
    sizer = PartSizer(program, plan, planning.machine, planning.threads)
    curve = partial(planning.curve)
    return Chunked(program, plan, source, sizer, exported=exported, curve=curve)


def _device(program: Program) -> torch.device:
    for item in program.inputs:
        return program.info(item.node).device
    return torch.device("cpu")
