"""The text that a rank runs, read statement by statement and proved to hold the model's tensors.

Every function of the module tree is run from the root's `forward` with this rank's tensors. What a
statement makes is compared with the model's tensor of that name by the relation the hint for it
says: the whole tensor, or this rank's rows of it. Where that is shown both go on from a tensor
known by name only. Hints and names are not trusted: a wrong one leaves the tensor as it is, and the
outputs are compared in any case.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import fx

from quire.capture.program import Op
from quire.verify.compare import closed, differ
from quire.verify.original import Original
from quire.verify.poly import ZERO, Poly, single, variable
from quire.verify.same import same
from quire.verify.shard.alike import function_key, many, results, statement_key
from quire.verify.shard.attend import Attention, Groups, ranked_value
from quire.verify.shard.drawn import Drawn
from quire.verify.shard.free import placed, sizes_of
from quire.verify.shard.length import as_poly, number
from quire.verify.shard.order import Mesh
from quire.verify.shard.task import Hint, Task
from quire.verify.shard.tensor import EXPECTED, Local, Namespace, Torch
from quire.verify.steps import Step
from quire.verify.term.core import RANGES
from quire.verify.value import NoMeaning, NotShown, Value, indices, require

Range = tuple[int, int]

WRONG = 3
"""Statements that may make another tensor than the model's of that name before the proof is given
up: from there on terms grow."""


class Applied:
    """Runs the functions against the model as captured."""

    def __init__(self, task: Task) -> None:
        program, names, ranks = task.program, task.names, task.ranks
        self.program, self.own = program, task.own
        every = [*task.hints.values(), *task.outputs]
        sizes = sizes_of(program, task.ranges, every)
        self.hints = {name: placed(at, sizes) for name, at in task.hints.items()}
        self.outputs = [placed(at, sizes) for at in task.outputs]
        self.lengths = [*task.lengths, *(number(sizes(name)) for name, *_ in task.ranges)]
        self.original = Original(program, sizes, apart=True)
        self.mesh = Mesh(ranks)
        self.hooks = Drawn(self.mesh, self._part_of, self._known, self._drawing)
        self.named: list[fx.Node | None] = []
        """What the statements that are being run are named after."""
        self.cuts: dict[fx.Node, Value] = {}
        self.parts: dict[int, tuple[fx.Node, Hint, Value]] = {}
        """This rank's part of each tensor that is known by name, by its `id`."""
        self.steps: list[Step] = []
        self.proved: dict[Any, Range | None] = {}
        """Statements by their structure, and the range of the integers that each makes."""
        self.again: dict[Any, list[Range | None]] = {}
        """Functions of the module tree likewise."""
        self.drawn: set[fx.Node] = set()
        self.between: dict[fx.Node, Range | None] = {}
        self.shared = 0
        self.functions = {(s.module, s.call): ast.parse(s.text).body[0] for s in task.sources}
        targets = {name: t for t, many in names.items() for name in many}
        nodes = {i.target: i.node for i in program.inputs}
        self.state = {name: nodes[t] for name, t in targets.items() if t in nodes}
        self.weights: dict[fx.Node, Local] = {}
        self.attention = Attention(self.hooks)
        self.scope: dict[str, Any] = {
            "aten": Namespace(torch.ops.aten), "torch": Torch(), "ranks": self.hooks,
            "attention": self.attention, "GROUP": "GROUP", "GROUPS": Groups(),
            "device": lambda *_, **__: "device", "float": float, "__builtins__": {},
        }  # fmt: skip

    def run(self) -> list[Step]:
        users = [i.node for i in self.program.inputs if i.kind == "user"]
        given = [Local(self._known(n, None, self.original.cut(n))) for n in users]
        made = self.call("", 0, [*given, *self.lengths])
        if not isinstance(made, tuple) or len(made) != len(self.program.outputs):
            raise NoMeaning("results of another number than the model's")
        for k, (got, out, at) in enumerate(
            zip(made, self.program.outputs, self.outputs, strict=True)
        ):
            label = f"output {k}" + ("" if at is None else f", rows of dim {at.dim},")
            if not isinstance(out, fx.Node):
                same_ = got is out or (not isinstance(got, Local) and got == out)
                self.steps.append(Step(0, label, "equal" if same_ else "differs"))
                continue
            why = self._differs(got, out, at)[0]
            self.steps.append(Step(0, label, "differs" if why else "equal", why))
        return self.steps

    def call(self, module: str, number: int, given: Sequence[Any]) -> Any:
        """A module's function on tensors of this rank."""
        if (module, number) not in self.functions:
            raise NoMeaning(f"call {number} of {module}")
        function = self.functions[module, number]
        assert isinstance(function, ast.FunctionDef)
        wanted = [a.arg for a in function.args.args][1:]
        if len(wanted) != len(given):
            raise NoMeaning(f"{module} called with {len(given)} values, and not {len(wanted)}")
        scope = {**self.scope, "self": Tree(self, module), **dict(zip(wanted, given, strict=True))}
        names = results(function)
        nodes = [n for name in names if (n := self.original.nodes.get(name)) is not None]
        key = None
        if module and nodes and len(nodes) == len(names):
            key = function_key(self, module, number, given, nodes)
        if key in self.again and not any(n in self.cuts for n in nodes):
            self.shared += 1
            ranges = zip(nodes, self.again[key], strict=True)
            made = tuple(Local(self._named(n, self.hint(n.name), b)) for n, b in ranges)
            return made if many(function) else made[0]
        made = self._body(function, scope, module)
        if key is not None:
            self._keep(key, nodes, made if many(function) else (made,))
        return made

    def _keep(self, key: Any, nodes: Sequence[fx.Node], made: Sequence[Any]) -> None:
        """Functions of this structure give the model's tensors, if each result is known by name."""
        for node, x in zip(nodes, made, strict=True):
            found = self.parts.get(id(x.value)) if isinstance(x, Local) else None
            if found is None or found[0] is not node or found[1] != self.hint(node.name):
                return
            if self.cuts[node].name is None:
                return
        self.again[key] = [self.between.get(n) for n in nodes]

    def _body(self, function: ast.FunctionDef, scope: dict[str, Any], module: str) -> Any:
        for statement in function.body:
            if isinstance(statement, ast.Return):
                assert statement.value is not None
                return _eval(statement.value, scope)
            if isinstance(statement, ast.FunctionDef):
                scope[statement.name] = self._inner(statement, module)
            elif isinstance(statement, ast.Delete):
                for target in statement.targets:
                    scope.pop(ast.unparse(target))
            elif isinstance(statement, ast.Assign | ast.Expr):
                self._statement(statement, scope, module)
            else:
                raise NoMeaning(f"the statement {ast.unparse(statement)}")
        return None

    def _inner(self, function: ast.FunctionDef, module: str) -> Any:
        """A function of some rows: it reads what it is given, and the module's weights."""
        wanted = [a.arg for a in function.args.args]

        def run(*given: Any) -> Any:
            require(len(wanted) == len(given), f"{len(given)} tensors, and not {len(wanted)}")
            own = dict(zip(wanted, given, strict=True))
            return self._body(function, {**self.scope, "self": Tree(self, module), **own}, module)

        return run

    def weight(self, name: str) -> Local:
        node = self.state[name]
        if node not in self.weights:
            self.weights[node] = Local(self._known(node, None, self.original.cut(node)))
        return self.weights[node]

    def hint(self, name: str) -> Hint:
        """Where the tensor `name` lies, for as many rows as are being run."""
        at = self.hints.get(name)
        return at if at is None else attrs.evolve(at, some=self.hooks.some)

    def _part_of(self, x: Local) -> tuple[fx.Node, Hint, Value]:
        """The tensor that `x` is this rank's part of, its place and the whole. Raises NotShown."""
        found = self.parts.get(id(x.value))
        if found is None:
            raise NotShown("rows of a tensor that is not shown to be one of the model's")
        node, at, _ = found
        return node, at, self.cuts.get(node) or self.original.cut(node)

    def _is_part(self, x: Local, node: fx.Node) -> bool:
        found = self.parts.get(id(x.value))
        return found is not None and found[0] is node

    def _known(self, node: fx.Node, at: Hint, whole: Value) -> Value:
        past = self.original.cut(node) if whole.name is None else None
        part = whole if at is None else self.mesh.seen(at, whole, past)
        self.parts[id(part)] = node, at, part
        return part

    # --- one statement ------------------------------------------------------------------------

    def _statement(self, statement: ast.stmt, scope: dict[str, Any], module: str) -> None:
        value = statement.value  # type: ignore[attr-defined]
        names = [n.id for t in getattr(statement, "targets", []) for n in _names(t)]
        calls = any(isinstance(n, ast.Name) and n.id == "self" for n in ast.walk(value))
        text = ast.unparse(statement)
        inner = calls and isinstance(value, ast.Call) and "self" in ast.unparse(value.func)
        node = self.original.nodes.get(names[0]) if len(names) == 1 and not inner else None
        key = None
        if node is not None and node.name not in self.own and not self.original.draws(node):
            key = statement_key(self, value, node, scope, module)
        if key is not None and node not in self.cuts and key in self.proved:
            assert node is not None
            at = self.hint(node.name)
            scope[names[0]] = Local(self._named(node, at, self.proved[key]))
            self.shared += 1
            return
        infos = self.program.infos.get(node, ()) if node is not None else ()
        facts = [([self.original.sizes(s) for s in i.shape], i.dtype) for i in infos]
        EXPECTED.append((*self._asked(node), facts))
        self.named.append(node)
        try:
            made = _eval(value, scope)
        except (NoMeaning, NotShown) as error:
            raise type(error)(f"{module or 'the root'}: {text}: {error}") from error
        finally:
            EXPECTED.pop()
            self.named.pop()
        if len(names) == 1:
            scope[names[0]] = made
        else:
            if not isinstance(made, tuple) or len(made) != len(names):
                raise NoMeaning(f"{text}: {len(names)} names for other results")
            scope.update(zip(names, made, strict=True))
        if inner:
            return
        for name in names:
            self._learn(name, scope, f"{module}: {text}", key)

    def _asked(self, node: fx.Node | None) -> tuple[str, str]:
        """The op that makes a tensor, and what it is called. Raises NotShown for numbers that are
        drawn twice: what is drawn for a tensor is one outcome."""
        if node is None or node not in self.program.ops:
            return "", ""
        if self.original.draws(node):
            if node in self.drawn or self.hooks.some:
                raise NotShown(f"{node.name} is drawn more than once")
            self.drawn.add(node)
        return str(node.target), self.original.label(node)

    def _drawing(self) -> tuple[Op, Any]:
        """The op that the statement is named after, and what it gives. Raises NotShown."""
        node = self.named[-1] if self.named else None
        if node is None or node not in self.drawn:
            raise NotShown("numbers drawn for no tensor of the model's")
        return self.program.ops[node], self.original.value(node, self.cuts, {})

    def _learn(self, name: str, scope: dict[str, Any], text: str, key: Any) -> None:
        node, made = self.original.nodes.get(name), scope[name]
        if node is None or not isinstance(made, Local) or len(self.program.infos[node]) != 1:
            return
        if name in self.own or (node in self.cuts and not self._is_part(made, node)):
            return  # a tensor of that name is held already: its padding rows may be others
        at = self.hint(name)
        try:
            why, want = self._differs(made, node, at)
        except (NoMeaning, NotShown) as error:
            self.steps.append(Step(1, f"{name}: {text}", "unknown", str(error)))
            return
        if why:
            self.steps.append(Step(1, f"{name}: {text}", "differs", why))
            wrong = [s for s in self.steps if s.verdict != "equal"]
            if len(wrong) > WRONG:
                raise NotShown(f"{wrong[0].text}: {wrong[0].reason}")
            return
        self.steps.append(Step(1, f"{name}: {text}", "equal"))
        if closed(want.scalar):
            scope[name] = Local(self._cut(node, at, want))
            return
        between = _range(made.value, want)
        scope[name] = Local(self._named(node, at, between))
        if key is not None:
            self.proved[key] = between

    def _named(self, node: fx.Node, at: Hint, between: Range | None) -> Value:
        """The tensor known by name, and by the range of its elements, padding rows' included."""
        self.between[node] = between
        if between is not None:
            RANGES[self.original.name(node)] = between
        return self._cut(node, at, self.original.cut(node))

    def _cut(self, node: fx.Node, at: Hint, whole: Value) -> Value:
        self.cuts[node] = whole
        return self._known(node, at, whole)

    def _differs(self, got: Any, node: fx.Node, at: Hint) -> tuple[str, Value]:
        """Why `got` is not, for all that is shown, this rank's part of what `node` is."""
        want = self.original.value(node, self.cuts, {})
        if not isinstance(got, Local):
            return f"{got} is no tensor", want
        value = got.value
        if at is None:
            if ranked_value(value):
                return "other on each rank", want
            return differ(value, want), want
        if value.ndim != want.ndim or value.dtype != want.dtype:
            return f"of {value.ndim} dims, {value.dtype}", want
        for d, (a, b) in enumerate(zip(value.shape, want.shape, strict=True)):
            fits = (as_poly(at.local), as_poly(at.whole)) if d == at.dim else (a, a)
            if a is not fits[0] or b is not fits[1]:
                return f"of shape {value.shape} of {want.shape}", want
        o = variable("o", [0], [at.outer - 1]) if at.outer > 1 else ZERO
        size = as_poly(at.order.size)
        q = variable("q", [0], [size - 1])
        e = variable("e", [0], [at.scale - 1]) if at.scale > 1 else ZERO
        idx = indices(want.shape)
        there = [*idx[: at.dim], (o * size + q) * at.scale + e, *idx[at.dim + 1 :]]
        mine = self.mesh.element(at, value, idx, o, q, e)
        whole = want.at(there)
        if same(mine, whole):
            return "", want
        return f"\n     is {mine}\n not {whole}"[:2000], want

    def tree(self, module: str) -> Tree:
        return Tree(self, module)


class Tree:
    """`self`: a module by its path. Its parameters are tensors, its submodules can be called."""

    def __init__(self, applied: Applied, path: str) -> None:
        self._applied, self._path = applied, path

    def _at(self, name: str) -> Any:
        path = f"{self._path}.{name}".strip(".")
        if path in self._applied.state:
            return self._applied.weight(path)
        return Tree(self._applied, path)

    def __getattr__(self, name: str) -> Any:
        return self._at(name)

    def __getitem__(self, at: int) -> Any:
        return self._at(str(at))

    def __call__(self, *given: Any, quire_call: int = 0, quire_program: int = 0) -> Any:
        return self._applied.call(self._path, quire_call, given)


def _range(*parts: Value) -> Range | None:
    """Numbers that all elements of the tensors, whole ones, lie between."""
    lows, highs = [], []
    for x in parts:
        atom = single(x.scalar) if isinstance(x.scalar, Poly) else None
        if atom is None or not atom.lower or not atom.upper:
            return None
        low, high = atom.lower[0].constant, atom.upper[0].constant
        if low is None or high is None:
            return None
        lows.append(low)
        highs.append(high)
    return min(lows), max(highs)


def _names(target: ast.expr) -> list[ast.Name]:
    if isinstance(target, ast.Name):
        return [target]
    if isinstance(target, ast.Tuple) and all(isinstance(e, ast.Name) for e in target.elts):
        return list(target.elts)  # type: ignore[arg-type]
    raise NoMeaning(f"an assignment to {ast.unparse(target)}")


def _eval(value: ast.expr, scope: dict[str, Any]) -> Any:
    return eval(compile(ast.Expression(value), "<rank>", "eval"), scope)
