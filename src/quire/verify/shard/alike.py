"""Statements and functions of equal structure, which are proved once.

A key holds the text, what its variables and weights hold, and the model's ops from what it must
equal back to tensors known by name. Those that the text holds are numbered in order, so that keys
are equal if one is the other under an exchange of names:

    f(x) = node(x) for every x, and g, node' are f, node with y for x   ⟹   g(y) = node'(y)

What is not known by name is in the key as it is, with the number of each tensor that it reads: an
exchange must leave those alone.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol

from torch import fx

from quire.verify.original import Original
from quire.verify.poly import Poly
from quire.verify.shard.drawn import Drawn
from quire.verify.shard.length import Length
from quire.verify.shard.task import Hint
from quire.verify.shard.tensor import Local
from quire.verify.structure import walk
from quire.verify.term.core import RANGES, flat
from quire.verify.value import NoMeaning, Value

Key = tuple[Hashable, ...] | None
"""None: it cannot be told what this is equal to."""


class Known(Protocol):
    """What is known of a rank's tensors while its text is run."""

    original: Original
    cuts: dict[fx.Node, Value]
    parts: dict[int, tuple[fx.Node, Hint, Value]]
    scope: dict[str, Any]
    functions: dict[tuple[str, int], ast.stmt]
    hooks: Drawn

    def tree(self, module: str) -> Any: ...

    def hint(self, name: str) -> Hint: ...


class _Held:
    """Tensors in the order that a text names them."""

    def __init__(self, known: Known) -> None:
        self.known = known
        self.order: dict[str, int] = {}
        self.rows: list[Any] = []
        self.others: dict[str, None] = {}
        """Tensors that are read by what is not known by name."""

    def add(self, x: Local) -> ast.Name:
        found = self.known.parts.get(id(x.value))
        if found is None:
            self.rows.append((x.value.shape, x.value.dtype, x.value.scalar))
            self.others.update(dict.fromkeys(_reads(x.value.scalar)))
        else:
            node, at, _ = found
            whole = self.known.cuts.get(node) or self.known.original.cut(node)
            name = whole.name or self.known.original.name(node)  # that of its padding rows
            number = self.order.setdefault(name, len(self.order))
            more = whole.scalar if whole.name is None else RANGES.get(name)
            self.rows.append((number, at, whole.shape, whole.dtype, more))
        return ast.Name(f"v{len(self.rows)}", ast.Load())

    def size(self, x: Length) -> ast.Name:
        self.rows.append(x)
        return ast.Name(f"v{len(self.rows)}", ast.Load())

    def key(self, texts: Sequence[str], nodes: Sequence[fx.Node]) -> Key:
        local: dict[fx.Node, int] = {}
        ops: list[Any] = []
        for node in nodes:
            walk(node, self.known.original, self.known.cuts, self.order, local, ops)
        places = tuple((local[n], self.known.hint(n.name)) for n in nodes)
        others = tuple((name, self.order.get(name)) for name in self.others)
        return tuple(texts), tuple(self.rows), tuple(ops), places, others, self.known.hooks.some


def statement_key(
    known: Known, value: ast.expr, node: fx.Node, scope: Mapping[str, Any], module: str
) -> Key:
    """Of a statement that makes what `node` may be."""
    held = _Held(known)
    try:
        shown = _Shown(held, module, scope.get)
        text = ast.unparse(shown.visit(ast.parse(ast.unparse(value), mode="eval").body))
        return held.key([text], [node])
    except NoMeaning:
        return None


def function_key(
    known: Known, module: str, number: int, given: Sequence[Any], nodes: Sequence[fx.Node]
) -> Key:
    """Of a function of the module tree, those that it calls among it, whose results may be `nodes`
    (see `results`)."""
    held = _Held(known)
    try:
        for x in given:
            if isinstance(x, Local):
                held.add(x)
            elif isinstance(x, Length) or type(x) is int:
                held.rows.append(x)
            else:
                return None
        texts: list[str] = []
        _function(held, module, number, texts)
        return held.key(texts, nodes)
    except NoMeaning:
        return None


def results(function: ast.FunctionDef) -> list[str]:
    """The names of what a function gives back; none if one has no name."""
    last = function.body[-1]
    value = last.value if isinstance(last, ast.Return) else None
    found = value.elts if isinstance(value, ast.Tuple) else [value]
    names = [x.id for x in found if isinstance(x, ast.Name)]
    return names if len(names) == len(found) else []


def many(function: ast.FunctionDef) -> bool:
    """Whether a function gives back a tuple."""
    last = function.body[-1]
    return isinstance(last, ast.Return) and isinstance(last.value, ast.Tuple)


def _function(held: _Held, module: str, number: int, texts: list[str]) -> int:
    """Appends the text of a function; gives its place."""
    if (module, number) not in held.known.functions:
        raise NoMeaning(f"call {number} of {module}")
    body = ast.parse(ast.unparse(held.known.functions[module, number])).body[0]
    own = _stored(body)
    for name in own:
        node = held.known.original.nodes.get(name)
        if node is not None and held.known.original.draws(node):
            raise NoMeaning(f"{name}, which is drawn anew each time")
    place = len(texts)
    texts.append("")
    texts[place] = ast.unparse(_Whole(held, module, own, texts).visit(body))
    return place


def _stored(body: ast.AST) -> dict[str, str]:
    """The names that a function gives to things, numbered in order."""
    found: dict[str, str] = {}
    for x in ast.walk(body):
        names = []
        if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store):
            names = [x.id]
        elif isinstance(x, ast.arg):
            names = [x.arg]
        elif isinstance(x, ast.FunctionDef) and x is not body:
            names = [x.name]
        for name in names:
            if name != "self":
                found.setdefault(name, f"n{len(found)}")
    return found


class _Shown(ast.NodeTransformer):
    """A text's variables and weights by what they hold."""

    def __init__(self, held: _Held, module: str, find: Callable[[str], Any]) -> None:
        self.held, self.find = held, find
        self.tree = held.known.tree(module)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        x = self.find(node.id)
        if isinstance(x, Local):
            return self.held.add(x)
        if isinstance(x, Length):
            return self.held.size(x)
        if type(x) is int:
            return ast.Constant(x)
        if node.id != "self" and (x is None or x is not self.held.known.scope.get(node.id)):
            raise NoMeaning(f"{node.id}, which is no tensor")
        return node

    def visit_Attribute(self, node: ast.Attribute | ast.Subscript) -> ast.AST:
        x = self.of_self(node)
        if isinstance(x, Local):
            return self.held.add(x)
        if x is not None:
            raise NoMeaning(f"{ast.unparse(node)}, which is handed on")
        return self.generic_visit(node)

    visit_Subscript = visit_Attribute

    def of_self(self, node: ast.expr) -> Any:
        """The weight or module that `self.…` names; None for other texts."""
        root: ast.expr = node
        while isinstance(root, ast.Attribute | ast.Subscript):
            root = root.value
        if root is node or not isinstance(root, ast.Name) or root.id != "self":
            return None
        code = compile(ast.Expression(node), "<rank>", "eval")
        return eval(code, {"self": self.tree, "__builtins__": {}})


class _Whole(_Shown):
    """The text of a function, its own names numbered; functions that it calls by their place."""

    def __init__(self, held: _Held, module: str, own: dict[str, str], texts: list[str]) -> None:
        super().__init__(held, module, {}.get)
        self.own, self.texts = own, texts

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id in self.own:
            return ast.Name(self.own[node.id], node.ctx)
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg(self.own.get(node.arg, node.arg))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.name = self.own.get(node.name, "forward")
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        called = self.of_self(node.func)
        if called is None or isinstance(called, Local):
            return self.generic_visit(node)
        number = 0
        for k in node.keywords:
            if k.arg == "quire_program":  # all functions are one program's
                continue
            if k.arg != "quire_call" or not isinstance(k.value, ast.Constant):
                raise NoMeaning(f"{ast.unparse(node)}")
            number = int(str(k.value.value))
        place = _function(self.held, called._path, number, self.texts)
        args = [self.visit(a) for a in node.args]
        return ast.Call(ast.Name(f"f{place}", ast.Load()), args, [])


def _reads(x: Any) -> list[str]:
    """The tensors that a scalar reads."""
    found: dict[str, None] = {}
    seen: set[int] = set()
    stack = [x]
    while stack:
        y = stack.pop()
        if id(y) in seen:
            continue
        seen.add(id(y))
        if isinstance(y, Poly):
            stack += [a for atom in y.free for a in atom.args]
        else:
            if y.op in ("read", "bread"):
                found[y.args[0]] = None
            stack += flat(y.args)
    return list(found)


__all__ = ["Key", "function_key", "many", "results", "statement_key"]
