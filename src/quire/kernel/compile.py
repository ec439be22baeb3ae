"""`Program` → the source of its kernel and the tables that the source is run with."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import sympy

from quire.capture.program import Program
from quire.kernel.arena import Arena, plan_arena
from quire.kernel.lower.build import Lowered, lower
from quire.kernel.render.cpp import Rendered, render
from quire.kernel.schedule import Phase, schedule


@attrs.frozen(eq=False)
class KernelPlan:
    """Everything about a kernel but the weights' addresses."""

    program: Program
    lowered: Lowered
    phases: tuple[Phase, ...]
    arena: Arena
    rendered: Rendered
    most: Mapping[sympy.Symbol, int]
    """The largest value of each length."""

    @property
    def source(self) -> str:
        return self.rendered.source


def compile_program(
    program: Program,
    scheme: str = "",
    title: str = "A kernel",
    longest: Mapping[sympy.Symbol, int] | None = None,
) -> KernelPlan:
    """The kernel of a program. `scheme` is how large weights are held: as they are (""), or one of
    `ir.BLOCKS`. `longest` are the largest lengths to serve, where the program does not bound them.

    Raises MissingRuleError for ops that cannot be lowered.
    """
    most = {s.name: s.hi if s.hi is not None else s.hint for s in program.symbols}
    most |= longest or {}
    lowered = lower(program, scheme)
    phases = schedule(lowered, most)
    arena = plan_arena(phases, most)
    rendered = render(phases, [s.name for s in program.symbols], most, title)
    return KernelPlan(program, lowered, phases, arena, rendered, most)
