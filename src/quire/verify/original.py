"""The program as captured, node by node: what each tensor of it is."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import sympy
import torch
from torch import fx

from quire.capture.program import Operand, Program
from quire.verify.meaning import MEANING, VIEWS
from quire.verify.meaning.opaque import draws, opaque
from quire.verify.meaning.table import apply
from quire.verify.poly import Poly
from quire.verify.sizes import Sizes
from quire.verify.value import NoMeaning, NotShown, Value, cut, require, same_size


class Original:
    """Values of a program's nodes, each computed from the nearest tensors in `given`. With `apart`
    each op that draws random numbers is a function of its own."""

    def __init__(self, program: Program, sizes: Sizes | None = None, apart: bool = False) -> None:
        self.program, self.apart = program, apart
        self.sizes = sizes or Sizes(program)
        self.nodes = {n.name: n for n in program.graph.nodes}
        self.inputs = {
            i.node: i.node.name if i.kind == "user" else f"w:{i.target}" for i in program.inputs
        }

    def shape(self, node: fx.Node) -> tuple[Poly, ...]:
        return tuple(self.sizes(s) for s in self.program.info(node).shape)

    def cut(self, node: fx.Node, name: str = "") -> Value:
        """The tensor that `node` stands for, known by name only."""
        info = self.program.info(node)
        return cut(name or self.name(node), self.shape(node), info.dtype)

    def name(self, node: fx.Node) -> str:
        return self.inputs.get(node, node.name)

    def draws(self, node: fx.Node) -> bool:
        """Whether the op of `node` draws random numbers."""
        op = self.program.ops.get(node)
        return op is not None and draws(op.target, op.arguments)

    def label(self, node: fx.Node) -> str:
        """What an op that is known by name only is called."""
        target = str(self.program.ops[node].target)
        return f"{target} drawn at {node.name}" if self.apart and self.draws(node) else target

    def value(self, node: fx.Node, given: Mapping[fx.Node, Value], memo: dict[Any, Any]) -> Any:
        """What `node` is, in terms of the values in `given`. Raises NoMeaning, NotShown."""
        stack = [node]
        while stack:
            top = stack[-1]
            if top in memo:
                stack.pop()
                continue
            if top in given:
                memo[top] = given[top]
                continue
            if top in self.inputs:
                memo[top] = self.cut(top)
                continue
            waiting = [n for n in self.needs(top) if n not in memo]
            if waiting:
                stack += waiting
                continue
            memo[top] = self._call(top, memo)
            stack.pop()
        return memo[node]

    def needs(self, node: fx.Node) -> list[fx.Node]:
        """The tensors that `node` reads."""
        if node.target is operator.getitem:
            return [node.args[0]]  # type: ignore[list-item]
        op = self.program.ops.get(node)
        if op is None:
            raise NoMeaning(f"{node.name} is no tensor of the program")
        return [o.node for o in op.operands]

    def _call(self, node: fx.Node, memo: Mapping[Any, Any]) -> Any:
        if node.target is operator.getitem:
            return memo[node.args[0]][node.args[1]]
        op = self.program.ops[node]
        given = {k: self._argument(v, memo) for k, v in op.arguments.items()}
        name = op.target._schema.name.split("::")[1]
        facts = [([self.sizes(s) for s in info.shape], info.dtype) for info in op.outputs]
        try:
            known = name in MEANING or name in VIEWS
            result = apply(name, given) if known else opaque(self.label(node), given, facts)
        except (NoMeaning, NotShown) as error:
            raise type(error)(f"{node.name} = {op.target}: {error}") from error
        for value, info in zip(
            result if isinstance(result, tuple) else (result,), op.outputs, strict=False
        ):
            want = [self.sizes(s) for s in info.shape]
            same = len(want) == value.ndim and all(map(_same, value.shape, want))
            require(same, f"{node.name}: meaning has shape {value.shape}, the program {want}")
        return result

    def _argument(self, value: Any, memo: Mapping[Any, Any]) -> Any:
        if isinstance(value, Operand):
            return memo[value.node]
        if isinstance(value, list | tuple):
            return [self._argument(v, memo) for v in value]
        if isinstance(value, sympy.Expr):
            found = self.sizes(value)
            return found.constant if found.constant is not None else found
        return value


def _same(a: Poly, b: Poly) -> bool:
    return same_size(a, b, "the shape of an op")


__all__ = ["Original", "torch"]
