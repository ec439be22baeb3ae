"""Ways to run models in parts and to compare them with eager."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.profiler import ProfilerActivity, profile
from torch.utils import _pytree as pytree

from quire.apply.chunk import apply_chunks
from quire.capture.export import export, from_exported
from quire.capture.program import Program
from quire.pipeline import Planning
from quire.plan.build import build_plan
from quire.plan.chunk import Candidate, Choice, ChunkPlanner
from quire.plan.plan import Plan
from quire.runtime.module import ChunkedModule

from .models import Case


@attrs.frozen(eq=False)
class Built:
    """A case's model, exported once, and what eager says."""

    name: str
    splits: bool
    model: nn.Module
    args: tuple[Any, ...]
    exported: ExportedProgram
    planning: Planning
    want: Any


def built(case: Case) -> Built:
    torch.manual_seed(0)
    model, args = case.make()
    model.eval()
    with torch.no_grad():
        want = model(*args)
    exported = export(model, args)
    return Built(
        case.name,
        case.splits,
        model,
        tuple(args),
        exported,
        Planning(from_exported(exported)),
        want,
    )


def module(program: Program, plan: Plan, parts: Mapping[str, int] | None = None) -> ChunkedModule:
    """`plan` carried out, with parts of other sizes if given."""
    sizes = {r.name: r.part for r in plan.regions} if parts is None else parts
    return ChunkedModule(program, plan, apply_chunks(program, plan).text, lambda _: sizes)


def check(run: nn.Module, args: Sequence[Any], want: Any, *, exact: bool = False) -> int:
    """`run(*args)` is `want` in values, dtypes and strides, and no input is written to. Returns
    the bytes that the call allocated at its worst moment."""
    kept = [a.clone() if isinstance(a, Tensor) else a for a in args]
    nbytes, got = allocated(lambda: run(*args))
    same(got, want, exact=exact)
    for now, before in zip(args, kept, strict=True):
        assert now is before or torch.equal(now, before), "an input was written to"
    return nbytes


def same(got: Any, want: Any, *, exact: bool = False) -> None:
    (found, spec), (wanted, expected) = pytree.tree_flatten(got), pytree.tree_flatten(want)
    assert spec == expected
    for g, w in zip(found, wanted, strict=True):
        if not isinstance(w, Tensor):
            assert g == w
            continue
        tolerance = 0.0 if exact or not w.is_floating_point() else 2e-5
        torch.testing.assert_close(g, w, rtol=tolerance, atol=tolerance, equal_nan=True)
        strides = zip(g.stride(), w.stride(), w.shape, strict=True)
        assert not w.numel() or all(a == b for a, b, size in strides if size > 1)


def allocated(call: Callable[[], Any]) -> tuple[int, Any]:
    """Bytes that torch's CPU allocator had handed out above the start, at the highest."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = call()
    assert recorded.profiler is not None
    events = recorded.profiler.kineto_results.events()
    live = top = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            top = max(top, live)
    return top, result


def regions(planner: ChunkPlanner) -> list[tuple[int, Candidate]]:
    """Every region that the planner weighs: the index after its last step, and the candidate."""
    return [
        (end, candidate)
        for end, found in enumerate(planner.candidates, 1)
        for candidate in found
        if end >= candidate.length
    ]


def one_region(planner: ChunkPlanner, end: int, candidate: Candidate, part: int) -> Plan:
    """The plan that splits `candidate`, to end before step `end`, and nothing else."""
    start = end - candidate.length
    peak = planner.live.before[start] + candidate.held + candidate.scratch(part)
    seconds = candidate.seconds(part)
    choice = Choice(start, end, peak, seconds, candidate, part)
    choices = [*planner.whole[:start], choice, *planner.whole[end:]]
    return build_plan(planner, choices, budget=None, baseline=(1, 1.0), before=())


def planners(planning: Planning) -> Iterator[tuple[Program, ChunkPlanner]]:
    for variant, planner in planning.planners():
        yield variant.program, planner
