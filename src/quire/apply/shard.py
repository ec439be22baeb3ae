"""Program + shard plan → the lines of one rank's forward.

Each op's line is the op itself on this rank's part, with what the plan puts before it (slices,
gathers, fills) and after it (joins over the ranks). Claim: with every spread tensor's rows at the
places its layout says, each line gives this rank's rows of what the op gives. Where lengths are
free they are inputs as tensors are, and a rank's rows of a sequence are a line of their own.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import sympy
import torch
from torch import fx
from torch.utils._sympy.functions import FloorDiv, Mod, PythonMod

from quire.apply.code import text as constant
from quire.capture.program import Op, Operand, Program
from quire.errors import CaptureError
from quire.plan.shard.plan import Candidate, Placed, ShardPlan, Site, Step, Stretch, padding

aten: Any = torch.ops.aten

_VIEWS = {aten.view.default, aten._unsafe_view.default}
_SHOWN = FloorDiv | Mod | PythonMod
"""Functions of sizes that have a text."""


@attrs.frozen
class Line:
    """`name = text`, where ‹x› in the text stands for the value x; `stack` is the path of modules
    it belongs to."""

    name: str
    text: str
    stack: tuple[str, ...]

    @property
    def reads(self) -> list[str]:
        return re.findall(r"‹(\w+)›", self.text)


@attrs.frozen(eq=False)
class Lines:
    """A rank's forward: `inputs` the user's, then lengths that are free; `state` parameters,
    buffers and constants by name."""

    lines: tuple[Line, ...]
    inputs: tuple[str, ...]
    state: Mapping[str, str]
    outputs: tuple[Any, ...]
    """Names as ‹x›, or constants."""
    stretches: tuple[Stretch, ...] = ()
    """Lines that run on some of the rank's rows at a time."""
    locals: Mapping[Any, str] = attrs.field(factory=dict)
    """A rank's rows of a sequence, by its length."""


def shard_lines(program: Program, plan: ShardPlan, *, whole_outputs: bool = False) -> Lines:
    return _Writer(program, plan).run(whole_outputs)


class _Writer:
    def __init__(self, program: Program, plan: ShardPlan) -> None:
        self.program, self.plan = program, plan
        self.steps = {step.node: step for step in plan.steps}
        self.steps |= {step.node: step for one in plan.stretches for step in one.steps}
        self.sites = {
            s.node: (s, c) for s, c in zip(plan.sites, plan.chosen, strict=True) if not s.plain
        }
        self.places: dict[str, Placed | None] = {}
        self.lines: list[Line] = []
        self.cache: dict[tuple[Any, ...], str] = {}
        self.taken = {n.name for n in program.graph.nodes}
        self.stack: tuple[str, ...] = ()
        self.sizes = {s.name: self._named(sympy.Symbol("length")) for s in program.symbols}
        self.rows = {size: self._named(rows) for rows, size in plan.local}
        self.sizes |= {rows: self.rows[size] for rows, size in plan.local}

    def _named(self, symbol: sympy.Symbol) -> sympy.Symbol:
        """`symbol` under a name that no value has."""
        name, k = symbol.name, 1
        while name in self.taken:
            name, k = f"{symbol.name}_{k}", k + 1
        self.taken.add(name)
        return sympy.Symbol(name, integer=True, positive=True)

    def run(self, whole_outputs: bool) -> Lines:
        for size, rows in self.rows.items():
            layout = f"{self._size(size)}, {self.plan.ranks}, {self.plan.order}"
            self._add(f"ranks.local_rows({layout})", rows.name)
        for node in self.program.graph.nodes:
            if node.name in self.steps or node.target is operator.getitem:
                self.stack = stack_of(node)
                self._node(node)
        self.stack = ()
        outputs = []
        for leaf in self.program.outputs:
            if not isinstance(leaf, fx.Node):
                outputs.append(leaf)
                continue
            name, placed = leaf.name, self.places.get(leaf.name)
            if whole_outputs and placed is not None:
                name = self._gathered(name, placed)
            outputs.append(f"‹{name}›")
        lines = _alive(self.lines, outputs)
        return Lines(
            lines,
            (
                *(i.node.name for i in self.program.inputs if i.kind == "user"),
                *(self.sizes[s.name].name for s in self.program.symbols),
            ),
            {i.node.name: i.target for i in self.program.inputs if i.kind != "user"},
            tuple(outputs),
            self.plan.stretches,
            {s.size: self._size(self._local(s.size)) for s in self.plan.stretches},
        )

    def _local(self, size: Any) -> Any:
        """A rank's rows of a sequence of `size`."""
        return self.plan.layout(size).local if isinstance(size, int) else self.rows[size]

    def _size(self, size: Any) -> str:
        """A size as text, ‹length› for what is free."""
        if isinstance(size, int):
            return str(size)
        shown = size.xreplace(self.sizes)
        if odd := [f for f in shown.atoms(sympy.Function) if not isinstance(f, _SHOWN)]:
            raise CaptureError(
                f"a size is {size}",
                allowed="sums, products and whole parts of quotients of lengths",
                fix=f"{odd[0].func} has no text here",
            )
        names = "|".join(s.name for s in self.sizes.values())
        return re.sub(rf"\b({names})\b", r"‹\1›", constant(shown))

    def _node(self, node: fx.Node) -> None:
        if node.target is operator.getitem:
            source, index = node.args
            self._add(f"‹{source}›[{index}]", node.name)  # type: ignore[str-bytes-safe]
            step = self.steps.get(source.name)  # type: ignore[union-attr]
            out = step.out if step is not None else ()
            self.places[node.name] = (
                out[index] if isinstance(index, int) and index < len(out) else None
            )
            return
        op = self.program.ops.get(node)
        if op is None:
            raise CaptureError(
                f"{node.name} computes a size, which cannot be sharded",
                where=str(node),
                fix="capture the model with every length fixed",
            )
        step = self.steps[node.name]
        self.places[node.name] = step.out[0] if step.out else None
        if step.kind == "site":
            self._site(*self.sites[node.name])
            return
        names = self._operands(op, step)
        if step.kind == "loss":
            self._loss(op, names)
        elif step.kind == "fixed":
            self._fixed(op, step, names)
        else:
            self._op(op, step, names)

    def _add(self, text: str, name: str) -> str:
        self.lines.append(Line(name, text, self.stack))
        return name

    def _new(self, text: str, hint: str) -> str:
        """A line whose value may be used again wherever the same text is needed."""
        key = (text,)
        if key not in self.cache:
            name, k = hint, 1
            while name in self.taken:
                name, k = f"{hint}_{k}", k + 1
            self.taken.add(name)
            self.cache[key] = self._add(text, name)
        return self.cache[key]

    def _layout(self, placed: Placed) -> str:
        return f"{self._size(placed.size)}, {self.plan.ranks}, {self.plan.order}, GROUP"

    def _rows(self, name: str, placed: Placed, make: str, whole: bool) -> str:
        """`make` applied to `name`, its rows laid bare where a row is several elements."""
        if placed.scale == 1:
            return make.format(x=f"‹{name}›", dim=placed.dim, outer=placed.outer)
        split = f"‹{name}›.unflatten({placed.dim}, (-1, {placed.scale}))"
        inner = make.format(x=split, dim=placed.dim, outer=placed.outer)
        return f"{inner}.flatten({placed.dim}, {placed.dim + 1})"

    def _gathered(self, name: str, placed: Placed) -> str:
        make = "ranks.gather_rows({x}, {dim}, {outer}, " + self._layout(placed) + ")"
        return self._new(self._rows(name, placed, make, True), f"{name}_whole")

    def _cut(self, name: str, placed: Placed, fill: str = "None") -> str:
        if placed.routed:
            count = self._size(placed.outer * self._local(placed.size) * placed.scale)
            return self._new(f"‹{name}›.narrow({placed.dim}, 0, {count})", f"{name}_part")
        make = "ranks.my_rows({x}, {dim}, {outer}, " + self._layout(placed) + f", {fill})"
        return self._new(self._rows(name, placed, make, False), f"{name}_part")

    def _filled(self, name: str, placed: Placed, fill: str) -> str:
        make = "ranks.fill_rows({x}, {dim}, {outer}, " + self._layout(placed) + f", {fill})"
        return self._new(self._rows(name, placed, make, False), f"{name}_filled")

    def _operands(self, op: Op, step: Step) -> list[str]:
        """The value that each operand is read from."""
        names = [o.node.name for o in op.operands]
        for index, placed in step.gathers:
            if step.kind != "fixed":
                names[index] = self._gathered(names[index], placed)
        fills = dict(step.fills)
        for index, placed in step.cuts:
            filled = step.kind == "loss" or fills.pop(index, None) is not None
            fill = constant(padding(step.kind, op, index)) if filled else "None"
            names[index] = self._cut(names[index], placed, fill)
        for index, placed in fills.items():
            fill = constant(padding(step.kind, op, index))
            names[index] = self._filled(names[index], placed, fill)
        return names

    def _op(self, op: Op, step: Step, names: list[str]) -> None:
        target: Any = op.target
        if target in _VIEWS:
            # A part's strides may differ from the whole's.
            target = aten.reshape.default
            changed = {"shape": dict(step.changed).get("size", op["size"])}
        else:
            changed = dict(step.changed)
        shown = _arguments(op, target, names, changed, self._size)
        if step.kind == "drawn":
            self._add(f"ranks.drawn({', '.join([_path(target), 'GROUP', *shown])})", op.node.name)
            return
        call = f"{_path(target)}({', '.join(shown)})"
        if step.kind in ("local", "whole"):
            self._add(call, op.node.name)
            return
        if step.kind in ("max", "min"):
            self._add(f"ranks.max_ranks({call}, GROUP, {step.kind == 'max'})", op.node.name)
            return
        share = "1.0"
        if step.kind == "mean":
            size = next(p.size for p in self._spread(op))
            local = self._local(size)
            known = isinstance(size, int)
            share = repr(local / size) if known else f"{self._size(local)} / {self._size(size)}"
        self._add(f"ranks.join_sum({call}, {share}, GROUP)", op.node.name)

    def _spread(self, op: Op) -> list[Placed]:
        found = [self.places.get(o.node.name) for o in op.operands]
        return [p for p in found if p is not None]

    def _loss(self, op: Op, names: list[str]) -> None:
        weight = op["weight"]
        scores, call = f"‹{names[op['self'].index]}›", "cross_entropy"
        if self.plan.head_parts > 1:
            rows, function = self._head()
            scores, call = f"‹{rows}›, {function}, {self.plan.head_parts}", "cross_entropy_in_parts"
        args = [
            scores,
            f"‹{names[op['target'].index]}›",
            "None" if weight is None else f"‹{names[weight.index]}›",
            *(repr(op[k]) for k in ("reduction", "ignore_index", "label_smoothing")),
            "GROUP",
        ]
        self._add(f"ranks.{call}({', '.join(args)})", op.node.name)

    def _head(self) -> tuple[str, str]:
        """What the scores are made from, and the function that makes those of some rows of it."""
        by_name = {n.name: n for n in self.program.ops}
        ops = [self.program.ops[by_name[name]] for name in self.plan.head]
        names = self._operands(ops[0], self.steps[ops[0].node.name])
        shown = _arguments(ops[0], ops[0].target, names, {}, self._size)
        made = f"{_path(ops[0].target)}({', '.join(shown)})"
        made = made.replace(f"‹{names[0]}›", "rows", 1)
        for op in ops[1:]:
            if op.is_view:  # rows laid out otherwise: here they are rows already
                continue
            inner = _arguments(op, op.target, ["rows"], {}, self._size)
            made = f"{_path(op.target)}({', '.join(inner)})".replace("‹rows›", made, 1)
        return names[0], f"lambda rows: {made}"

    def _fixed(self, op: Op, step: Step, names: list[str]) -> None:
        (_, placed), changed = step.gathers[0], dict(step.changed)
        text = (
            f"ranks.fixed_rows(‹{names[0]}›, {placed.dim}, {self._size(changed['first'])}, "
            f"{self._size(changed['count'])}, {self._layout(placed)})"
        )
        if op.out.ndim < op.operands[0].ndim:
            text += f".squeeze({placed.dim})"
        self._add(text, op.node.name)

    def _site(self, site: Site, best: Candidate) -> None:
        plan = self.plan
        q = self._at(site.q, Placed(2, site.q_size))
        k, v = (self._at(n, Placed(2, site.k_size)) for n in (site.k, site.v))
        args = [f"‹{q}›", f"‹{k}›", f"‹{v}›"]
        if site.rule:
            leaves = [self._at(n, None) for n in site.leaves]
            args.append(f"leaves=[{', '.join(f'‹{n}›' for n in leaves)}]")
            args.append(f"rule={site.rule!r}")
        if (site.left, site.right) != (None, None):
            args.append(f"band=({site.left}, {site.right})")
        if site.scale is not None:
            args.append(f"scale={site.scale!r}")
        if best.way == "ulysses" and site.dropout:
            args.append(f"dropout={site.dropout!r}")
        args.append(f"q_size={self._size(site.q_size)}, k_size={self._size(site.k_size)}")
        args.append(f"ranks={plan.ranks}, ring={plan.order}")
        if best.way == "hybrid":
            args.append(f"ring_of={best.ring_of}")
            args.append(f"ulysses_group=GROUPS['ulysses', {best.ring_of}]")
            args.append(f"ring_group=GROUPS['ring', {best.ring_of}]")
        else:
            args.append("group=GROUP")
        self._add(f"attention.{best.way}({', '.join(args)})", site.node)

    def _at(self, name: str, want: Placed | None) -> str:
        have = self.places.get(name)
        if have == want:
            return name
        if have is not None:
            name = self._gathered(name, have)
        return name if want is None else self._cut(name, want)


def stack_of(node: fx.Node) -> tuple[str, ...]:
    """The modules that a node was called in, outermost first, without the root."""
    paths = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return tuple(p for p in paths if p)


def _path(target: Any) -> str:
    namespace, name = target._schema.name.split("::")
    head = "aten" if namespace == "aten" else f"torch.ops.{namespace}"
    return f"{head}.{name}.{target._overloadname}"


def _arguments(
    op: Op,
    target: Any,
    names: list[str],
    changed: Mapping[str, Any],
    size: Callable[[Any], str],
) -> list[str]:
    def show(value: Any) -> str:
        if isinstance(value, Operand):
            return f"‹{names[value.index]}›"
        if isinstance(value, list | tuple):
            return "[" + ", ".join(show(v) for v in value) + "]"
        if isinstance(value, sympy.Expr):
            return size(value)
        if isinstance(value, torch.device):
            return repr(value)
        return constant(value)

    shown, skipped = [], False
    for argument in target._schema.arguments:
        name = argument.name
        value = changed[name] if name in changed else op.arguments[name]
        if argument.has_default_value() and _is(value, argument.default_value):
            skipped = True
            continue
        prefix = f"{name}=" if skipped or argument.kwarg_only else ""
        shown.append(prefix + show(value))
    return shown


def _is(value: Any, default: Any) -> bool:
    return not isinstance(value, Operand) and type(value) is type(default) and value == default


def _alive(lines: list[Line], outputs: list[Any]) -> tuple[Line, ...]:
    """The lines that an output needs."""
    needed = {n for o in outputs if isinstance(o, str) for n in re.findall(r"‹(\w+)›", o)}
    kept: list[Line] = []
    for line in reversed(lines):
        if line.name in needed:
            kept.append(line)
            needed.update(line.reads)
    return tuple(reversed(kept))
