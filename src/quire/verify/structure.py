"""The shape of one statement and of what it must equal, with names taken out: statements of equal
structure are proved once."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

import sympy
from torch import fx

from quire.capture.program import Operand
from quire.verify.original import Original


class _Renamed(ast.NodeTransformer):
    """Variables, weights and regions' names by order of appearance."""

    def __init__(self, variables: Callable[[str], bool]) -> None:
        self.variables = variables
        self.order: dict[str, int] = {}

    def number(self, name: str) -> str:
        return f"v{self.order.setdefault(name, len(self.order))}"

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if isinstance(node.ctx, ast.Store) or self.variables(node.id):
            return ast.Name(self.number(node.id), node.ctx)
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        word = node.value.id if isinstance(node.value, ast.Name) else ""
        if word in ("w", "parts") and isinstance(node.slice, ast.Constant):
            label = f"w:{node.slice.value}" if word == "w" else "parts"
            return ast.Name(self.number(label), node.ctx)
        return self.generic_visit(node)


def signature(
    statement: ast.stmt,
    targets: list[str],
    variables: Callable[[str], bool],
    original: Original,
    cuts: Mapping[fx.Node, Any],
) -> tuple[Any, dict[str, int]] | None:
    """A hashable value, equal for statements that are proved alike, and the numbers given to
    names; None if the original has no tensor of a target's name."""
    renamed = _Renamed(variables)
    text = ast.unparse(renamed.visit(_copy(statement)))
    nodes = [original.nodes.get(name) for name in targets]
    if any(node is None for node in nodes):
        return None
    local: dict[fx.Node, int] = {}
    rows: list[Any] = []
    for node in nodes:
        assert node is not None
        _walk(node, original, cuts, renamed.order, local, rows)
    return (text, tuple(rows), tuple(local[n] for n in nodes if n is not None)), renamed.order


def _copy(statement: ast.stmt) -> ast.stmt:
    return ast.parse(ast.unparse(statement)).body[0]


def _walk(
    root: fx.Node,
    original: Original,
    cuts: Mapping[fx.Node, Any],
    order: Mapping[str, int],
    local: dict[fx.Node, int],
    rows: list[Any],
) -> None:
    stack = [root]
    while stack:
        node = stack[-1]
        if node in local:
            stack.pop()
            continue
        leaf = node in cuts or node in original.inputs
        waiting = [] if leaf else [n for n in original.needs(node) if n not in local]
        if waiting:
            stack += waiting
            continue
        stack.pop()
        local[node] = len(local)
        facts = tuple((str(i.shape), str(i.dtype)) for i in original.program.infos[node])
        if leaf:
            name = original.inputs.get(node, node.name)
            rows.append(("leaf", order.get(name, name), facts))
        elif node.target is operator.getitem:
            rows.append(("item", local[node.args[0]], node.args[1], facts))  # type: ignore[index]
        else:
            op = original.program.ops[node]
            rows.append((str(op.target), _key(op.arguments, local), facts))


def _key(value: Any, local: Mapping[fx.Node, int]) -> Any:
    if isinstance(value, Operand):
        return ("tensor", local[value.node])
    if isinstance(value, Mapping):
        return tuple((k, _key(v, local)) for k, v in value.items())
    if isinstance(value, list | tuple):
        return tuple(_key(v, local) for v in value)
    if isinstance(value, sympy.Expr):
        return str(value)
    return f"{type(value).__name__}:{value}"
