"""A plan for all lengths of a range: made at the longest, its sizes then expressions of the length.

    sizes at the longest  →  the same ops, cuts, gathers and joins, with sizes of any length

Side condition: with the length unknown, the relations put every tensor's rows where they are at the
longest length, and at the shortest. Claim: at each length of the range this is a plan of the
program at that length. How attention is done, and what memory asks for, is that of the longest,
which needs most.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import sympy
from torch import fx

from quire.capture.program import Program, evaluate
from quire.errors import CaptureError
from quire.plan.layout import Layout
from quire.plan.shard.flow import Placer
from quire.plan.shard.plan import ShardPlan, Step
from quire.plan.shard.sites import find_sites

OF_AN_OCTAVE = 4
"""Buckets between a length and twice that."""

Env = Mapping[sympy.Symbol, int]


def bucket(size: int) -> range:
    """The lengths that share a plan with `size`: the last is at most a quarter above the first."""
    step = max(1, (1 << (size - 1).bit_length()) // (2 * OF_AN_OCTAVE))
    top = -(-size // step) * step
    return range(top - step + 1, top + 1)


def free_plan(program: Program, plan: ShardPlan, longest: Env, shortest: Env) -> ShardPlan:
    """`plan`, made of `program` at its `longest` lengths, with the sizes of any length.

    Raises CaptureError where the program's ops are not spread alike at all lengths.
    """
    sites = find_sites(program)
    placer = Placer(program, sites, plan.ranks, plan.order, longest)
    spreading = placer.run()
    places = {n.name: at for n, at in spreading.places.items()}
    nodes = {n.name: n for n in program.graph.nodes}
    free = attrs.evolve(
        plan,
        sites=sites,
        steps=tuple(spreading.steps.values()),
        inputs=tuple(
            (i.target, at)
            for i in program.users_inputs()
            if (at := spreading.wants.get(i.node)) is not None
        ),
        outputs=tuple(
            spreading.places.get(o) if isinstance(o, fx.Node) else None for o in program.outputs
        ),
        stretches=tuple(
            attrs.evolve(
                one,
                size=_size(places[one.given[0][0]]),
                steps=placer.on_rows([nodes[n] for n in one.nodes], one.rows),
                given=tuple((name, places[name]) for name, _ in one.given),
                made=tuple((name, places[name]) for name, _ in one.made),
            )
            for one in plan.stretches
        ),
        local=tuple((rows, size) for size, rows in placer.local.items()),
    )
    for env in (longest, shortest):
        _check(program.at(env), plan_at(free, env))
    return free


def _size(placed: Any) -> Any:
    if placed is None:
        raise CaptureError("rows that are spread at one length, and not at every other")
    return placed.size


def plan_at(plan: ShardPlan, env: Env) -> ShardPlan:
    """A plan of free lengths at those of `env`."""
    sizes = {rows: Layout(evaluate(n, env), plan.ranks, plan.order).local for rows, n in plan.local}
    names = ("sites", "steps", "inputs", "outputs", "stretches")
    put = {name: _put(getattr(plan, name), {**env, **sizes}) for name in names}
    return attrs.evolve(plan, local=(), **put)


def _put(value: Any, env: Env) -> Any:
    if isinstance(value, sympy.Expr):
        return evaluate(value, env)
    if isinstance(value, tuple):
        return tuple(_put(x, env) for x in value)
    if attrs.has(type(value)):
        return attrs.evolve(
            value, **{f.name: _put(getattr(value, f.name), env) for f in attrs.fields(type(value))}
        )
    return value


def _check(program: Program, plan: ShardPlan) -> None:
    """That `plan` is how `program`, of known lengths, is spread. Raises CaptureError."""
    sites = find_sites(program)
    placer = Placer(program, sites, plan.ranks, plan.order)
    own = tuple(placer.run().steps.values())
    differs = [b.node for a, b in zip(plan.sites, sites, strict=True) if a != b]
    differs += [b.node for a, b in zip(plan.steps, own, strict=True) if _way(a) != _way(b)]
    short = [s.module for s in plan.stretches if s.rows > placer.rows(s.size)]
    if differs or short:
        raise CaptureError(
            f"{', '.join((differs + short)[:3])}: spread otherwise at one length than at another",
            allowed="ops whose rows lie alike at all lengths",
        )


def _way(step: Step) -> Step:
    """What is done, but for padding, which some lengths have none of, and what it costs."""
    return attrs.evolve(step, fills=(), sent=0)
