"""The applied program read statement by statement and proved equal to the original.

Each statement of the emitted `forward` is run with symbolic tensors. What it makes is compared
with the original's tensor of that name; where they are shown equal, both go on from one tensor
that is known by name only (a *cut*), so that terms stay as small as one region. Names are hints:
a wrong one leaves the tensor as it is, and the outputs are compared in any case.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx

from quire.capture.program import Program
from quire.verify.compare import closed, differ
from quire.verify.decide import maximum, minimum
from quire.verify.execute import (
    EXPECTED,
    Kernels,
    Namespace,
    Proxy,
    Torch,
    causal_rows,
)
from quire.verify.loop import part_loop
from quire.verify.memory import ALIVE, Held, Storage, Tensor, fresh
from quire.verify.number import plain, wrap
from quire.verify.original import Original
from quire.verify.poly import variable
from quire.verify.restart import CALL, Restarts, marked
from quire.verify.sizes import Sizes
from quire.verify.steps import Step
from quire.verify.structure import signature
from quire.verify.value import NoMeaning, NotShown, Value

WRONG = 4
"""Statements that may make another tensor than the original's of that name before the proof is
given up: from there on terms grow."""


class Applied:
    """Runs the emitted source against the original program."""

    def __init__(self, program: Program, source: str, sizes: Sizes | None = None) -> None:
        self.program, self.source = program, source
        self.original = Original(program, sizes)
        self.cuts: dict[Any, Value] = {}
        self.steps: list[Step] = []
        self.owners: dict[str, Storage] = {}
        self.untouched: dict[str, Any] = {}
        self.written: set[str] = set()
        self.proved: dict[Any, list[int | None]] = {}
        self.restarts = Restarts(self.original, self.cuts)

    def run(self) -> list[Step]:
        tree = ast.parse(self.source)
        scope: dict[str, Any] = {
            "torch": Torch(), "aten": Namespace(torch.ops.aten), "kernels": Kernels(),
            "causal_rows": causal_rows, "range": part_loop, "min": smallest, "max": largest,
            "float": float, "device": "device", "__builtins__": {},
            CALL: self.restarts,
        }  # fmt: skip
        functions = [f for f in tree.body if isinstance(f, ast.FunctionDef)]
        regions = ast.Module([f for f in functions if f.name != "forward"], [])
        exec(compile(marked(regions), "<emitted>", "exec"), scope)
        (forward,) = [f for f in functions if f.name == "forward"]
        scope["w"] = _Weights(self)
        scope["parts"] = _Parts()
        users = {i.node.name: i.node for i in self.program.inputs if i.kind == "user"}
        ALIVE.append([])
        try:
            for name in [a.arg for a in forward.args.args][2:]:
                self.own(name, scope, self.original.cut(users[name]))
            for statement in forward.body:
                self._statement(statement, scope)
                wrong = [s for s in self.steps if s.verdict != "equal"]
                if len(wrong) > WRONG:
                    raise NotShown(f"{wrong[0].text}: {wrong[0].reason or wrong[0].verdict}")
        finally:
            ALIVE.pop()
        return self.steps

    def own(self, name: str, scope: dict[str, Any], value: Value) -> None:
        tensor = fresh(value, name)
        self.owners[name] = tensor.storage
        self.untouched[name] = tensor.storage.content
        scope[name] = Proxy(tensor)

    def _statement(self, statement: ast.stmt, scope: dict[str, Any]) -> None:
        text = ast.unparse(statement)
        if isinstance(statement, ast.Return) and statement.value is not None:
            self._outputs(
                eval(compile(ast.Expression(statement.value), "<emitted>", "eval"), scope)
            )
            return
        if isinstance(statement, ast.Delete):
            exec(compile(ast.Module([statement], []), "<emitted>", "exec"), scope)
            return
        if not isinstance(statement, ast.Assign):
            raise NoMeaning(f"the statement {text}")
        if text.startswith("device = "):
            return
        (target,) = statement.targets
        names = [n.id for n in ast.walk(target) if isinstance(n, ast.Name)]
        found = signature(
            statement, names, lambda n: isinstance(scope.get(n), Proxy), self.original, self.cuts
        )
        if found is not None and self._as_before(found, names, scope, statement.lineno, text):
            return
        contents = self._contents(found, scope)
        self.restarts.within([self.original.nodes[n] for n in names if n in self.original.nodes])
        with self._expected(names):
            exec(compile(ast.Module([statement], []), "<emitted>", "exec"), scope)
        good = self._made(names, scope, statement.lineno, text)
        if found is not None and contents is not None and good:
            self._remember(found, names, scope, contents)

    @contextmanager
    def _expected(self, names: list[str]) -> Iterator[None]:
        node = self.original.nodes.get(names[0])
        infos = self.program.infos.get(node, ()) if node is not None else ()
        shape = self.original.sizes
        facts = [([shape(s) for s in i.shape], i.dtype) for i in infos]
        EXPECTED.append((str(node.target) if node is not None else "", facts))
        try:
            yield
        finally:
            EXPECTED.pop()

    def _contents(self, found: Any, scope: dict[str, Any]) -> dict[str, Any] | None:
        """What the variables that a statement reads hold: whole tensors known by name, or None."""
        if found is None:
            return None
        contents = {}
        for name in found[1]:
            if name.startswith("w:"):
                contents[name] = scope["w"][name[2:]]
            elif isinstance(scope.get(name), Proxy):
                contents[name] = scope[name]
        for proxy in contents.values():
            held = proxy.storage.content
            if proxy.tensor.steps or not isinstance(held, Held) or held.value is None:
                return None
        return {name: (p.storage, p.storage.content) for name, p in contents.items()}

    def _remember(self, found: Any, names: list[str], scope: Any, contents: Any) -> None:
        """Keep what a proved statement did: new tensors, or inputs written over."""
        key, order = found
        made = []
        for name in names:
            tensor = scope[name].tensor
            if tensor.steps:
                return
            over = [n for n, (s, _) in contents.items() if s is tensor.storage]
            made.append(order[over[0]] if over else None)
        kept = {order[n] for n, (s, before) in contents.items() if s.content is before}
        if any(order[n] not in kept and order[n] not in made for n in contents):
            return
        self.proved[key, self._known(order, contents)] = made

    def _known(self, order: dict[str, int], contents: dict[str, Any]) -> Any:
        """What is known of the variables that are not simply the original's tensor of that name."""
        known = []
        for name, (_, content) in contents.items():
            own = self.cuts.get(self.original.nodes.get(name))
            plain = content.value is own and own is not None and own.name
            if content is not self.untouched.get(name) and not plain:
                known.append((order[name], content.value.shape, content.value.scalar))
        return tuple(known)

    def _as_before(
        self, found: Any, names: list[str], scope: dict[str, Any], line: int, text: str
    ) -> bool:
        """Take a statement as proved if one of its structure was."""
        key, order = found
        contents = self._contents(found, scope)
        if contents is None:
            return False
        made = self.proved.get((key, self._known(order, contents)))
        if made is None:
            return False
        by_number = {k: name for name, k in order.items()}
        for name, over in zip(names, made, strict=True):
            node = self.original.nodes[name]
            cut = self.original.cut(node)
            self.cuts[node] = cut
            if over is None:
                scope[name] = Proxy(fresh(cut, name))
            else:
                given = by_number[over]
                proxy = scope["w"][given[2:]] if given.startswith("w:") else scope[given]
                proxy.storage.content = Held(cut)
                scope[name] = Proxy(Tensor(proxy.storage))
                if given in self.owners:
                    self.written.add(given)
            self.steps.append(Step(line, text, "equal", "as before"))
        return True

    def _made(self, names: list[str], scope: dict[str, Any], line: int, text: str) -> bool:
        """Compare what a statement made with the original's tensors of those names. All are
        compared in terms of what was known before the statement."""
        memo: dict[Any, Any] = {}
        equal = {}
        for name in names:
            node, made = self.original.nodes.get(name), scope[name]
            if not isinstance(made, Proxy) or node is None or len(self.program.infos[node]) != 1:
                continue
            try:
                want = self.original.value(node, self.restarts.given, memo)
                why = differ(made.tensor.value(), want)
            except NoMeaning as error:
                self.steps.append(Step(line, name, "unknown", str(error)))
                continue
            self.steps.append(Step(line, f"{name}: {text}", "differs" if why else "equal", why))
            if not why:
                equal[node] = (made.tensor, want)
        for node, (tensor, want) in equal.items():
            cut = want if closed(want.scalar) else self.original.cut(node)
            self.cuts[node] = cut
            if tensor.steps:
                tensor.write(cut)
            else:
                tensor.storage.content = Held(cut)
        return len(equal) == len(names)

    def _outputs(self, made: list[Any]) -> None:
        memo: dict[Any, Any] = {}
        for k, (got, out) in enumerate(zip(made, self.program.outputs, strict=True)):
            label = f"output {k}"
            if not isinstance(out, fx.Node):
                self.steps.append(Step(0, label, "equal" if got == out else "differs"))
                continue
            want = self.original.value(out, self.cuts, memo)
            why = differ(got.tensor.value(), want)
            self.steps.append(Step(0, label, "differs" if why else "equal", why))
        for name, storage in self.owners.items():
            if storage.content is not self.untouched[name]:
                self.steps.append(Step(0, name, "differs", "an input or weight is written to"))


class _Weights:
    def __init__(self, applied: Applied) -> None:
        self.applied = applied
        program = applied.program
        self.nodes = {i.target: i.node for i in program.inputs if i.kind != "user"}
        self.made: dict[str, Proxy] = {}

    def __getitem__(self, target: str) -> Proxy:
        if target not in self.made:
            tensor = fresh(self.applied.original.cut(self.nodes[target]), target)
            self.applied.owners[f"w:{target}"] = tensor.storage
            self.applied.untouched[f"w:{target}"] = tensor.storage.content
            self.made[target] = Proxy(tensor)
        return self.made[target]


class _Parts:
    """Part sizes: any number from 1 up."""

    def __init__(self) -> None:
        self.made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self.made:
            self.made[name] = wrap(variable(f"part_{name}", [1]))
        return self.made[name]


def smallest(*xs: Any) -> Any:
    total = plain(xs[0])
    for x in xs[1:]:
        total = minimum(total, plain(x))
    return wrap(total)


def largest(*xs: Any) -> Any:
    total = plain(xs[0])
    for x in xs[1:]:
        total = maximum(total, plain(x))
    return wrap(total)
