"""Restarts within a loop over parts: what a step makes becomes rows of the original's tensor.

Terms of ops that read other rows of each other (convolutions) double with every op, so a long
region cannot be compared at its end alone. Where a step's term is large it is compared with rows
`[lo, hi)` of a tensor of the original; shown equal, both go on from that tensor, known by name
only. Which tensor and which rows are guesses (the op's name, the bounds the text has cut): a wrong
one is not shown, and leaves everything as it is.
"""

from __future__ import annotations

import ast
from typing import Any

from torch import fx

from quire.verify.decide import prove
from quire.verify.execute import Proxy
from quire.verify.number import plain
from quire.verify.original import Original
from quire.verify.poly import Poly
from quire.verify.same import same
from quire.verify.value import NoMeaning, NotShown, Value, indices

TRIES = 2
"""Tensors of the original that a step is compared with."""

CALL = "‹restart›"


def marked(functions: ast.Module) -> ast.Module:
    """`functions` with a call of `CALL` after each op of a loop's body: where it is, the op, its
    result, and the bounds that were cut before it."""
    for loop in [n for n in ast.walk(functions) if isinstance(n, ast.For)]:
        bounds: list[tuple[str, str]] = []
        body: list[ast.stmt] = []
        for statement in loop.body:
            body.append(statement)
            names = _bounds(statement)
            if names is not None:
                bounds = [*bounds, names]
            made = _made(statement)
            if made is not None and any(_is_cut(n) for n in loop.body):
                op, name = made
                pairs = "".join(f"({lo}, {hi}), " for lo, hi in reversed(bounds))
                text = f"_({statement.lineno}, {op!r}, {name}, ({pairs}))"
                (call,) = ast.parse(text).body
                call.value.func.id = CALL  # type: ignore[attr-defined]
                body.append(ast.copy_location(call, statement))
        loop.body = body
    return ast.fix_missing_locations(functions)


def _bounds(statement: ast.stmt) -> tuple[str, str] | None:
    """The names of the bounds that `lo, hi = …` or `b = min(a + …, …)` binds."""
    if not isinstance(statement, ast.Assign) or not isinstance(statement.value, ast.Call):
        return None
    (target,) = statement.targets
    words = [n.id for n in ast.walk(target) if isinstance(n, ast.Name)]
    if isinstance(target, ast.Tuple) and len(words) == 2:
        return words[0], words[1]
    if isinstance(target, ast.Name) and ast.unparse(statement.value.func) == "min":
        first = statement.value.args[0]
        if isinstance(first, ast.BinOp) and isinstance(first.left, ast.Name):
            return first.left.id, target.id
    return None


def _is_cut(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Tuple)


def _made(statement: ast.stmt) -> tuple[str, str] | None:
    """The op that a statement is, and the name of its result."""
    if not isinstance(statement, ast.Assign | ast.Expr):
        return None
    call = statement.value
    if not isinstance(call, ast.Call):
        return None
    path = ast.unparse(call.func).split(".")
    if path[0] not in ("aten", "torch", "kernels") or len(path) < 2:
        return None
    outs = [k.value for k in call.keywords if k.arg == "out"]
    to = statement.targets[0] if isinstance(statement, ast.Assign) else outs[0] if outs else None
    return (path[1], to.id) if isinstance(to, ast.Name) else None


class Restarts:
    """The restarts of one proof. `within` begins those of one statement, which makes `outputs`."""

    def __init__(self, original: Original, cuts: dict[Any, Value]) -> None:
        self.original, self.cuts = original, cuts
        self.within([])

    def within(self, outputs: list[fx.Node]) -> None:
        self.made: dict[fx.Node, Value] = {}
        self.sites: dict[int, fx.Node] = {}
        self.nodes: list[fx.Node] | None = None
        self.outputs = outputs

    @property
    def given(self) -> dict[Any, Value]:
        """All tensors known by name only."""
        return {**self.cuts, **self.made}

    def __call__(self, site: int, op: str, made: Any, bounds: tuple[tuple[Any, Any], ...]) -> None:
        if not isinstance(made, Proxy) or not made.tensor.newest:
            return
        value = made.tensor.value()
        if isinstance(value.scalar, Poly):
            return
        for node in self._candidates(site, op, value):
            rows = self._rows(node, value, bounds)
            if rows is None or not self._equal(node, value, rows):
                continue
            self.sites[site] = node
            self.made[node] = cut = self.original.cut(node)
            known = Value(value.shape, value.dtype, cut.at(rows))
            made.tensor.write(known)
            return

    def _candidates(self, site: int, op: str, value: Value) -> list[fx.Node]:
        if site in self.sites:
            return [self.sites[site]]
        taken = set(self.sites.values())
        return [
            n
            for n in self._inside()
            if n not in taken and _name(self.original, n) == op and self._alike(n, value)
        ][:TRIES]

    def _alike(self, node: fx.Node, value: Value) -> bool:
        infos = self.original.program.infos[node]
        return (
            len(infos) == 1 and infos[0].dtype == value.dtype and len(infos[0].shape) == value.ndim
        )

    def _inside(self) -> list[fx.Node]:
        """The nodes between what is known and the outputs, in the program's order."""
        if self.nodes is None:
            seen: set[fx.Node] = set()
            left = [n for n in self.outputs if n not in self.cuts]
            while left:
                node = left.pop()
                if node in seen or node in self.cuts or node in self.original.inputs:
                    continue
                seen.add(node)
                left += self.original.needs(node)
            self.nodes = [n for n in self.original.program.graph.nodes if n in seen]
        return self.nodes

    def _rows(self, node: fx.Node, value: Value, bounds: Any) -> list[Poly] | None:
        """The index in the original's tensor of each element of `value`."""
        own, found = indices(value.shape), None
        for d, (here, whole) in enumerate(zip(value.shape, self.original.shape(node), strict=True)):
            if here is whole:
                continue
            if found is not None:
                return None
            for lo, hi in bounds:
                first, last = plain(lo), plain(hi)
                if last - first is here:
                    found = d, first, last, whole
                    break
            else:
                return None
        if found is None:
            return own
        d, first, last, whole = found
        if not (prove(first, why="rows begin") and prove(whole - last, why="rows end")):
            return None
        own[d] = own[d] + first
        return own

    def _equal(self, node: fx.Node, value: Value, rows: list[Poly]) -> bool:
        try:
            known = {n: v for n, v in self.given.items() if n is not node}
            want = self.original.value(node, known, {})
            return same(value.scalar, want.at(rows))
        except (NoMeaning, NotShown):
            return False


def _name(original: Original, node: fx.Node) -> str:
    op = original.program.ops.get(node)
    return op.target._schema.name.split("::")[1] if op is not None else ""
