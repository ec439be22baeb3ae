"""Programs whose lengths are free: captured once for a range, planned for each bucket of it.

    capture with a free length  →  plan at the bucket's longest  →  the same plan at any length

The longest length of a bucket needs most memory: a budget kept there is kept by all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import sympy
from torch import nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from quire.capture.program import Program, leaf_paths
from quire.errors import BudgetError, CaptureError, InputError
from quire.plan.shard.lengths import bucket, free_plan, plan_at
from quire.plan.shard.plan import ShardPlan
from quire.plan.shard.sites import find_sites
from quire.runtime.programs import Built, Free, Length, kind_of, modes_of
from quire.verify.shard.free import least
from quire.verify.shard.order import Order
from quire.verify.shard.task import Range

Env = dict[sympy.Symbol, int]
Ranges = tuple[range, ...]


@attrs.frozen(eq=False)
class Making:
    """How `quire.shard` was asked to do it: `capture(model, args, kwargs, dims)` a program,
    `plan(program)` of known lengths, `write(model, program, plan, number)` its functions, and
    `prove(model, built, lengths)` the certificate at some lengths, or with `ranges` that of all
    lengths in these, whatever it says; None if nothing is to be proved."""

    capture: Callable[..., Program]
    plan: Callable[[Program], ShardPlan]
    write: Callable[[nn.Module, Program, ShardPlan, int], Built]
    prove: Callable[..., Any] | None


@attrs.define(eq=False)
class FreeLengths:
    """Builds programs of free lengths. Captures are kept, the `most` used last; so is what cannot
    be captured."""

    making: Making
    most: int
    captured: dict[Any, tuple[Ranges, Program]] = attrs.field(factory=dict)
    refused: dict[Any, str] = attrs.field(factory=dict)

    def __call__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        free: Free,
        number: int,
    ) -> Built:
        """One program for the bucket of the call's lengths. Raises CaptureError, BudgetError."""
        leaves, spec = pytree.tree_flatten((args, kwargs))
        lengths = free.lengths(leaves)
        buckets = tuple(bucket(n) for n in lengths)
        if min(lengths) < 2:
            raise CaptureError(f"a length of {min(lengths)}", allowed="free lengths from 2 on")
        kind = free, free.rest(leaves), kind_of(leaves, spec, modes_of(model))
        if why := self.refused.get((kind, buckets)):
            raise CaptureError(why)
        try:
            program = self._program(model, args, kwargs, free, kind, lengths, buckets)
            return self._built(model, program, free, args, kwargs, buckets, lengths, number)
        except CaptureError as error:
            self.refused[kind, buckets] = error.found
            raise
        except TypeError as error:  # sympy's, of an expression that has no number yet
            self.refused[kind, buckets] = f"a number is needed where a length is free: {error}"
            raise CaptureError(self.refused[kind, buckets]) from error

    def _program(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        free: Free,
        kind: Any,
        lengths: Sequence[int],
        buckets: Ranges,
    ) -> Program:
        """For a wide range if that can be, else for the bucket alone."""
        most = [max(n, first) for n, first in zip(lengths, free.first, strict=True)]
        wide = tuple(range(2, (1 << (n - 1).bit_length()) + 1) for n in most)
        for key in ((kind, "wide"), (kind, buckets)):
            ranges, program = self.captured.get(key, ((), None))
            if program is not None and all(
                n in r and b[-1] <= r[-1] for n, b, r in zip(lengths, buckets, ranges, strict=True)
            ):
                self.captured[key] = self.captured.pop(key)
                return program
        tries = [((kind, "wide"), wide), ((kind, buckets), buckets)]
        if (kind, "wide") in self.refused:
            tries = tries[1:]
        for key, ranges in tries:
            dims = [Dim(f"length_{k}", min=max(r[0], 2), max=r[-1]) for k, r in enumerate(ranges)]
            asked: dict[int, dict[int, Any]] = {}
            for leaf, dim, k in free.dims:
                asked.setdefault(leaf, {})[dim] = dims[k]
            try:
                program = self.making.capture(model, args, kwargs, asked)
            except CaptureError as error:
                self.refused[key] = error.found
                continue
            self.captured[key] = ranges, program
            while len(self.captured) > self.most:
                del self.captured[next(iter(self.captured))]
            return program
        raise CaptureError(self.refused[kind, buckets])

    def _built(
        self,
        model: nn.Module,
        program: Program,
        free: Free,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        buckets: Ranges,
        lengths: tuple[int, ...],
        number: int,
    ) -> Built:
        leaf = {path: k for k, path in enumerate(leaf_paths((args, dict(kwargs))))}
        paths = {i.node: i.target for i in program.users_inputs()}
        places = {(i, d): k for i, d, k in free.dims}
        reads = [(leaf[paths[s.source]], s.dim) for s in program.symbols]
        names = [s.name for s in program.symbols]
        which = [places[at] for at in reads]
        if sorted(which) != list(range(len(lengths))):
            raise CaptureError("a length that the model takes for another, or for a constant")
        here = {n: lengths[k] for n, k in zip(names, which, strict=True)}
        longest = {n: buckets[k][-1] for n, k in zip(names, which, strict=True)}
        shortest = {n: max(buckets[k][0], 2) for n, k in zip(names, which, strict=True)}
        try:
            plan = self.making.plan(program.at(longest))
        except BudgetError:
            # What the longest has no room for may fit at the length that is asked for.
            longest = here
            plan = self.making.plan(program.at(longest))
        general = free_plan(program, plan, longest, shortest)
        made = self.making.write(model, program, general, number)
        ranges = [range(shortest[n], longest[n] + 1) for n in names]
        shown = ", ".join(f"{r[0]} to {r[-1]}" for r in ranges)
        note = f"one program for the lengths {shown}, planned for the longest"
        made = attrs.evolve(
            made,
            plan=attrs.evolve(plan, notes=(*plan.notes, note)),
            lengths=tuple(Length(*at, r) for at, r in zip(reads, ranges, strict=True)),
        )
        if self.making.prove is None:
            return made
        prove = self.making.prove
        if any(len(r) > 1 for r in ranges):
            both = [(n, r[0], r[-1]) for n, r in zip(names, ranges, strict=True)]
            every = prove(model, attrs.evolve(made, plan=general), ranges=both)
            if every.verdict == "proved":
                every = attrs.evolve(every, plan=made.plan.to_json())
                return attrs.evolve(made, certificate=every, certify=lambda _: every)

        def certify(lengths: tuple[int, ...]) -> Any:
            env = dict(zip(names, lengths, strict=True))
            there = attrs.evolve(made, program=program.at(env), plan=plan_at(general, env))
            return prove(model, there, lengths)

        first = certify(tuple(here[n] for n in names))
        return attrs.evolve(made, certificate=first, certify=certify)


def over(
    making: Making,
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    low: int,
    high: int,
) -> tuple[Built, tuple[Range, ...]]:
    """One program for all lengths from `low` to `high` tokens, planned for `high`, with a plan
    whose sizes are expressions of lengths, and the range of each.

    Raises CaptureError, BudgetError, InputError where a range is none, or begins before every rank
    has rows of each of its blocks.
    """
    if not 2 <= low <= high:
        raise InputError(f"lengths from {low} to {high}", allowed="from 2 on, the least first")
    leaves = pytree.tree_leaves((args, kwargs))
    sites = find_sites(making.capture(model, args, kwargs, None))
    free = Free.of(leaves, {n for s in sites for n in (s.q_size, s.k_size)})
    if not free.dims:
        raise InputError(
            "no input of the example is as long as an attention's sequence",
            allowed="models whose lengths are those of their inputs",
            fix="prove one length at a time, without lengths=",
        )
    most = [max(high, n) for n in free.first]
    fewest = [min(low, n) for n in free.first]
    dims = [
        Dim(f"length_{k}", min=max(a, 2), max=b)
        for k, (a, b) in enumerate(zip(fewest, most, strict=True))
    ]
    asked: dict[int, dict[int, Any]] = {}
    for leaf, dim, k in free.dims:
        asked.setdefault(leaf, {})[dim] = dims[k]
    program = making.capture(model, args, kwargs, asked)
    names = [s.name for s in program.symbols]
    longest, shortest = dict.fromkeys(names, high), dict.fromkeys(names, low)
    plan = making.plan(program.at(longest))
    first = least(Order(high, plan.ranks, plan.order))
    if low < first:
        raise InputError(
            f"lengths from {low} on",
            allowed=f"from {first} on, where each of {plan.ranks} ranks has rows of each of its "
            "blocks",
            fix="prove shorter ones one at a time, without lengths=",
        )
    general = free_plan(program, plan, longest, shortest)
    made = making.write(model, program, general, 0)
    return made, tuple((name, low, high) for name in names)
