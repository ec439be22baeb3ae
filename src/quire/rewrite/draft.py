"""A program's graph under edit: `Program → Draft → edits → Program`.

Every node carries its fake tensor in `meta["val"]`, so that a new node's shape, dtype and strides
come from torch itself, with symbolic sizes where the program has them.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

import sympy
import torch
from torch import fx
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._sympy.functions import FloorDiv

from quire.capture.build import rebuild, size_of, tensor_info, where_of
from quire.capture.clean import clean
from quire.capture.program import Program, Size, TensorInfo

aten: Any = torch.ops.aten

VIEWS = {aten.view.default, aten._unsafe_view.default, aten.reshape.default}
_PLACE = ("nn_module_stack", "stack_trace", "source_fn_stack", "torch_fn", "from_node")


class Refused(Exception):
    """An edit that would hold for some lengths only, or that torch rejects."""


class Draft:
    """A copy of `program`'s graph. `new[node]` is the copy of one of its nodes."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.graph = fx.Graph()
        self.new: dict[fx.Node, fx.Node] = {}
        self.graph.output(self.graph.graph_copy(program.graph, self.new))
        self._mode = _fake_mode(self.graph)
        self._changed: set[fx.Node] = set()
        self._sizes: dict[Size, fx.Node] = {}

    # --- reading ----------------------------------------------------------------------------

    def nodes(self, *targets: Any) -> list[fx.Node]:
        """The calls of `targets` (all calls if none are given), in order."""
        calls = [n for n in self.graph.nodes if n.op == "call_function"]
        return [n for n in calls if not targets or n.target in targets]

    def info(self, node: fx.Node) -> TensorInfo:
        return tensor_info(node.meta["val"])

    def shape(self, node: fx.Node) -> tuple[Size, ...]:
        return tuple(size_of(s) for s in node.meta["val"].shape)

    def is_tensor(self, value: Any) -> bool:
        return isinstance(value, fx.Node) and isinstance(value.meta.get("val"), torch.Tensor)

    def module(self, node: fx.Node) -> str:
        return where_of(node).module or "the model"

    # --- writing ----------------------------------------------------------------------------

    def call(
        self,
        target: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None = None,
        *,
        at: fx.Node,
    ) -> fx.Node:
        """A new call before the node `at`, whose place in the model it takes.

        Raises Refused, with nothing inserted, if torch rejects it or would accept it for some
        lengths only.
        """
        value = self._fake(target, args, kwargs or {})
        with self.graph.inserting_before(at):
            node = self.graph.call_function(target, tuple(args), dict(kwargs or {}))
        node.meta = {key: at.meta[key] for key in _PLACE if key in at.meta}
        node.meta["val"] = value
        return node

    def view(self, node: fx.Node, shape: Sequence[Size], *, at: fx.Node) -> fx.Node:
        """`node` in another shape; a copy only where its strides leave no other way."""
        if tuple(shape) == self.shape(node):
            return node
        sizes = self.size_arguments(shape)
        try:
            return self.call(aten.view.default, (node, sizes), at=at)
        except Refused:
            copy = self.call(
                aten.clone.default, (node,), {"memory_format": torch.contiguous_format}, at=at
            )
            return self.call(aten.view.default, (copy, sizes), at=at)

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """`new` wherever `old` was read. Shapes and dtypes must agree; strides need not."""
        if not self.is_tensor(old):
            old.replace_all_uses_with(new)
            return
        before, after = self.info(old), self.info(new)
        if before.shape != after.shape or before.dtype != after.dtype:
            raise Refused(f"{old} of {before} replaced by {new} of {after}")
        if before.stride != after.stride:
            self._changed |= set(old.users)
        old.replace_all_uses_with(new)

    def supplant(self, old: fx.Node, new: fx.Node) -> None:
        """`new` wherever `old` was read, and under its name: they stand for one tensor."""
        self.replace(old, new)
        self.graph.erase_node(old)
        new.name = old.name

    def rewire(self, node: fx.Node, target: Any, args: tuple[Any, ...]) -> None:
        """Make `node` the call `target(*args)`. Raises Refused, with nothing changed."""
        before = node.args, node.target
        try:
            node.args, node.target = args, target
            value = self._fake(node.target, node.args, node.kwargs)
        except Refused:
            node.args, node.target = before
            raise
        if _facts(value) != _facts(node.meta["val"]):
            self._changed |= set(node.users)
        node.meta["val"] = value

    def size_arguments(self, shape: Sequence[Size]) -> list[Any]:
        """Sizes as a call's arguments: ints, and nodes for what follows from lengths."""
        plain = [int(s) if isinstance(s, int | sympy.Integer) else s for s in shape]
        return [s if isinstance(s, int) else self._size_node(s) for s in plain]

    def settle(self, nodes: Iterable[fx.Node]) -> None:
        """Work out the strides of `nodes` anew when the draft is cleared."""
        self._changed |= set(nodes)

    def clear(self) -> None:
        """Carry changed strides through, and drop what nothing reads. Raises Refused."""
        self._repropagate()
        clean(self.graph)

    def finish(self) -> Program:
        """The edited program. Raises Refused."""
        self.clear()
        return rebuild(self.program, self.graph, self.new)

    # --- inside -----------------------------------------------------------------------------

    def _fake(self, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        guards = self._guards()
        values = fx.map_arg((tuple(args), dict(kwargs)), lambda n: n.meta["val"])
        try:
            with self._mode, torch.no_grad():
                result = target(*values[0], **values[1])  # type: ignore[index]
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise Refused(f"{target}: {error}") from error
        if self._guards() != guards:
            raise Refused(f"{target} holds for some lengths only")
        strides = kernel_strides(target, *values)  # type: ignore[misc]
        if strides is None or strides == result.stride():
            return result
        with self._mode:
            return torch.empty_strided(
                result.shape, strides, dtype=result.dtype, device=result.device
            )

    def _guards(self) -> int:
        return len(self._mode.shape_env.guards) if self._mode.shape_env is not None else 0

    def _size_node(self, size: sympy.Expr) -> fx.Node:
        """A node that holds `size`, ahead of all calls."""
        if size in self._sizes:
            return self._sizes[size]
        if isinstance(size, sympy.Symbol):
            symbol = next((s for s in self.program.symbols if s.name == size), None)
            if symbol is None:
                raise Refused(f"no input has the length {size}")
            node = self._size_call(aten.sym_size.int, (self.new[symbol.source], symbol.dim))
        elif isinstance(size, FloorDiv):
            node = self._size_call(operator.floordiv, tuple(self.size_arguments(size.args)))  # type: ignore[arg-type]
        elif isinstance(size, sympy.Pow) and size.exp.is_Integer and size.exp > 0:
            node = self._fold(operator.mul, [size.base] * int(size.exp))
        elif isinstance(size, sympy.Add | sympy.Mul):
            function = operator.add if isinstance(size, sympy.Add) else operator.mul
            node = self._fold(function, size.args)
        else:
            raise Refused(f"the size {size}")
        self._sizes[size] = node
        return node

    def _fold(self, function: Any, sizes: Sequence[Any]) -> fx.Node:
        return reduce(lambda a, b: self._size_call(function, (a, b)), self.size_arguments(sizes))

    def _size_call(self, function: Any, args: tuple[Any, ...]) -> fx.Node:
        last_input = [n for n in self.graph.nodes if n.op == "placeholder"][-1]
        with self.graph.inserting_after(max(last_input, *_nodes(args))):
            node = self.graph.call_function(function, args)
        node.meta["val"] = function(*fx.map_arg(args, lambda n: n.meta["val"]))  # type: ignore[misc]
        return node

    def _repropagate(self) -> None:
        for node in list(self.graph.nodes):
            if node.op != "call_function" or node not in self._changed:
                continue
            try:
                value = self._fake(node.target, node.args, node.kwargs)
            except Refused:
                if node.target not in VIEWS:
                    raise
                copy = self.call(
                    aten.clone.default,
                    (node.args[0],),
                    {"memory_format": torch.contiguous_format},
                    at=node,
                )
                node.args = (copy, *node.args[1:])
                value = self._fake(node.target, node.args, node.kwargs)
            before, after = _facts(node.meta["val"]), _facts(value)
            node.meta["val"] = value
            if before != after:
                if [f[:2] for f in before] != [f[:2] for f in after]:
                    raise Refused(f"{node} of {before} would become {after}")
                self._changed |= set(node.users)
        self._changed.clear()


def kernel_strides(
    target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[int, ...] | None:
    """The strides that the kernel of a view, or of a reshape, gives its output, where all sizes are
    known; None elsewhere. `args` and `kwargs` hold tensors, which are not read."""
    schema = getattr(target, "_schema", None)
    source = args[0] if args else None
    if schema is None or not isinstance(source, torch.Tensor) or len(schema.returns) != 1:
        return None
    if target is not aten._unsafe_view.default and schema.returns[0].alias_info is None:
        return None
    flat = pytree.tree_leaves((source.shape, source.stride(), args[1:], kwargs))
    if any(isinstance(v, torch.SymInt | torch.Tensor) for v in flat):
        return None
    stand_in = torch.empty_strided(source.shape, source.stride(), dtype=source.dtype, device="meta")
    result = target(stand_in, *args[1:], **kwargs)
    return result.stride() if isinstance(result, torch.Tensor) else None


def _nodes(args: tuple[Any, ...]) -> list[fx.Node]:
    return [a for a in args if isinstance(a, fx.Node)]


def _facts(value: Any) -> list[tuple[Any, ...]]:
    values = value if isinstance(value, list | tuple) else [value]
    infos = [tensor_info(v) for v in values if isinstance(v, torch.Tensor)]
    return [(i.shape, i.dtype, i.stride) for i in infos]


def _fake_mode(graph: fx.Graph) -> FakeTensorMode:
    for node in graph.nodes:
        if isinstance(node.meta.get("val"), FakeTensor):
            return node.meta["val"].fake_mode
    raise Refused("a graph without tensors")
