"""Audit flow rules on whole models: every call of a captured graph, with its real operands.

For a graph with symbolic lengths the rule sees the symbols, and what it claims is checked at the
lengths of the call.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import attrs
import sympy
import torch
from rule_case import Case, as_list
from torch import fx
from torch.utils import _pytree as pytree

from quire.capture.export import capture
from quire.capture.program import Op, Operand, Program
from quire.flow.registry import flow_of
from quire.flow.relation import Axis, Flow, Part, Span


def concrete(value: Any, env: Mapping[sympy.Symbol, int]) -> Any:
    """`value` with its symbols replaced."""
    if isinstance(value, sympy.Expr):
        found = sympy.sympify(value.xreplace(dict(env)))
        return int(found) if found.is_Integer else found
    if isinstance(value, list | tuple):
        return [concrete(v, env) for v in value]
    if isinstance(value, Operand):
        return attrs.evolve(value, info=value.info.at(env))
    return value


def at_hints(op: Op, env: Mapping[sympy.Symbol, int]) -> Op:
    arguments = {name: concrete(value, env) for name, value in op.arguments.items()}
    flat = pytree.tree_leaves(list(arguments.values()))
    operands = sorted((v for v in flat if isinstance(v, Operand)), key=lambda v: v.index)
    outputs = tuple(out.at(env) for out in op.outputs)
    return attrs.evolve(op, arguments=arguments, operands=tuple(operands), outputs=outputs)


def flow_at(flow: Flow, env: Mapping[sympy.Symbol, int]) -> Flow:
    def span_at(span: Span | None) -> Span | None:
        if span is None:
            return None
        names = ("scale", "lo", "hi", "outer")
        return attrs.evolve(span, **{n: concrete(getattr(span, n), env) for n in names})

    def axis_at(axis: Axis) -> Axis:
        edit = axis.edit

        def edit_at(part: Part) -> dict[str, Any]:
            assert edit is not None
            return {k: concrete(v, env) for k, v in edit(part).items()}

        return attrs.evolve(
            axis,
            size=concrete(axis.size, env),
            reads=tuple(span_at(s) for s in axis.reads),
            writes=tuple(span_at(s) for s in axis.writes),
            edit=edit and edit_at,
        )

    return attrs.evolve(flow, axes=tuple(axis_at(a) for a in flow.axes))


class Recorder(fx.Interpreter):
    """Runs a program's graph; `results` are the values of its nodes."""

    def __init__(self, program: Program) -> None:
        super().__init__(fx.GraphModule({}, program.graph), garbage_collect_values=False)


def values(program: Program, args: Any, kwargs: Any) -> dict[fx.Node, Any]:
    """What every node of the program's graph is, for a call with `args` and `kwargs`."""
    leaves, _ = pytree.tree_flatten_with_path((tuple(args), dict(kwargs)))
    given = {pytree.keystr(path): leaf for path, leaf in leaves}
    paths = {f"args{k[3:]}" if k.startswith("[0]") else k[3:].strip("[]'"): k for k in given}
    known = {
        i.node: given[paths[i.target]] if i.kind == "user" else program.state[i.target]
        for i in program.inputs
    }
    places = [n for n in program.graph.nodes if n.op == "placeholder"]
    recorder = Recorder(program)
    with torch.no_grad():
        recorder.run(*(known.get(n) for n in places))
    return recorder.env


def audit_model(name: str, attention: str, report: Any, *, dynamic: bool, seed: int = 0) -> None:
    """Add to `report` what the calls of one model of `benchmarks.zoo` show."""
    from audit_rules import audit_flow  # noqa: PLC0415 - it imports this module

    from benchmarks import zoo  # noqa: PLC0415 - needs transformers and diffusers

    built = zoo.build(name, "small", attention)  # type: ignore[arg-type]
    shapes = None
    if dynamic:
        if zoo.CASES[name].dynamic is None:
            raise SystemExit(f"{name} is exported for one length only")
        case = zoo.CASES[name]
        length = torch.export.Dim("length", min=4, max=case.small * case.grows)
        shapes = zoo.dynamic_shapes(name, built, length)
    program = capture(built.model, built.args, built.kwargs, shapes)
    found = values(program, built.args, built.kwargs)
    env = program.hints
    rng = random.Random(seed)
    seen: set[str] = set()
    for node, op in program.ops.items():
        sizes = [o.shape for o in op.operands]
        rest = [
            v for v in pytree.tree_leaves(list(op.arguments.values())) if type(v) is not Operand
        ]
        key = f"{op.target} {sizes} {rest}"
        if key in seen:
            continue
        seen.add(key)
        tensors = [found[o.node] for o in op.operands]
        case = Case(at_hints(op, env), tensors, as_list(found[node]))
        audit_flow(case, flow_at(flow_of(op), env), rng, report, search=not dynamic)
