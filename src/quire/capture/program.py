"""`Program`: a functional ATen graph with the facts that every later step reads.

The graph is an ordinary `torch.fx.Graph`. What is known about its nodes lives here in frozen
tables keyed by node, never in `node.meta`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, Literal, cast

import attrs
import sympy
import torch
from torch import fx
from torch.utils import _pytree as pytree

Size = int | sympy.Expr
"""A tensor size: an int, or an expression over the program's length symbols."""


@attrs.frozen
class TensorInfo:
    """Shape, dtype, strides (in elements) and device of one tensor."""

    shape: tuple[Size, ...]
    dtype: torch.dtype
    stride: tuple[Size, ...]
    device: torch.device

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def numel(self) -> Size:
        count: Size = 1
        for size in self.shape:
            count = count * size
        return count

    @property
    def nbytes(self) -> Size:
        """Bytes of the elements, without padding."""
        return self.numel * self.dtype.itemsize

    def at(self, env: Mapping[sympy.Symbol, int]) -> TensorInfo:
        """The same tensor with every length symbol replaced by its value in `env`."""
        if all(isinstance(s, int) for s in (*self.shape, *self.stride)):
            return self
        shape = tuple(evaluate(s, env) for s in self.shape)
        return attrs.evolve(self, shape=shape, stride=tuple(evaluate(s, env) for s in self.stride))


def evaluate(size: Size, env: Mapping[sympy.Symbol, int]) -> int:
    """`size` as an int, its symbols taken from `env`."""
    return size if isinstance(size, int) else int(cast(Any, size.xreplace(env)))


@attrs.frozen
class Where:
    """A place in the user's model: module path, class of that module, source file and line."""

    module: str = ""
    kind: str = ""
    file: str = ""
    line: int = 0
    code: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.file else "(no source line)"
        name = f"{self.module or '(root)'} [{self.kind}]" if self.kind else self.module
        return f"{name} {place}" + (f"  `{self.code}`" if self.code else "")


@attrs.frozen
class Input:
    """One placeholder of the graph.

    `target` is the parameter's or buffer's full name, or the key of a lifted constant; for the
    user's inputs it is the path within `(args, kwargs)`, such as `args[0]`.
    """

    node: fx.Node
    kind: Literal["user", "parameter", "buffer", "constant"]
    target: str


@attrs.frozen
class Symbol:
    """A length that may differ from call to call: its range, the value it had at capture, and
    the dimension of the user's input it is read from."""

    name: sympy.Symbol
    lo: int
    hi: int | None
    hint: int
    source: fx.Node
    dim: int


@attrs.frozen(eq=False)
class Operand:
    """A tensor argument of an op: its position among the op's tensor arguments, and its facts."""

    index: int
    node: fx.Node
    info: TensorInfo

    @property
    def shape(self) -> tuple[Size, ...]:
        return self.info.shape

    @property
    def ndim(self) -> int:
        return self.info.ndim


@attrs.frozen(eq=False)
class Op:
    """One call of an ATen op as rules and emitters see it.

    `op["name"]` is an argument by its name in the op's schema, defaults filled in; tensors come
    as `Operand`, symbolic sizes as sympy expressions.
    """

    node: fx.Node
    target: Any
    arguments: Mapping[str, Any]
    operands: tuple[Operand, ...]
    outputs: tuple[TensorInfo, ...]
    where: Where

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.arguments.get(name, default)

    @property
    def out(self) -> TensorInfo:
        """The first, and for most ops only, output."""
        return self.outputs[0]

    @cached_property
    def is_view(self) -> bool:
        """Whether the outputs share memory with an operand."""
        schema = getattr(self.target, "_schema", None)
        if schema is None:
            return False
        return self.target is torch.ops.aten._unsafe_view.default or any(
            r.alias_info is not None for r in schema.returns
        )


@attrs.frozen(eq=False)
class Program:
    """A captured model.

    `infos` holds the output tensors of every node that makes any (a tuple, one entry per
    output); `ops` every `call_function` node but `getitem` and arithmetic on sizes;
    `sizes` the value of nodes that are sizes. `state` are the parameters, buffers and constants
    by `Input.target`. `outputs` are the leaves of the model's result: nodes, or constants.
    """

    graph: fx.Graph
    inputs: tuple[Input, ...]
    outputs: tuple[Any, ...]
    infos: Mapping[fx.Node, tuple[TensorInfo, ...]]
    sizes: Mapping[fx.Node, Size]
    ops: Mapping[fx.Node, Op]
    symbols: tuple[Symbol, ...]
    state: Mapping[str, torch.Tensor]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    constants: Mapping[str, Any] = attrs.field(factory=dict)
    """The user's inputs that are not tensors, fixed at capture, by their path."""
    paths: tuple[str, ...] = ()
    """Path of every leaf of the user's `(args, kwargs)`, in order."""
    writes: Mapping[fx.Node, fx.Node] = attrs.field(factory=dict)
    """Inputs that the model changes in place, and the value each has after the call."""

    @property
    def hints(self) -> dict[sympy.Symbol, int]:
        return {s.name: s.hint for s in self.symbols}

    def info(self, node: fx.Node) -> TensorInfo:
        """The facts of the tensor `node` stands for (its first output)."""
        return self.infos[node][0]

    def at(self, env: Mapping[sympy.Symbol, int]) -> Program:
        """The program at one length: every length symbol replaced by its value in `env`."""
        ops = {node: _op_at(op, env) for node, op in self.ops.items()}
        infos = {n: tuple(i.at(env) for i in many) for n, many in self.infos.items()}
        sizes = {n: evaluate(s, env) for n, s in self.sizes.items()}
        return attrs.evolve(self, infos=infos, sizes=sizes, ops=ops, symbols=())

    def users_inputs(self) -> Iterator[Input]:
        return (i for i in self.inputs if i.kind == "user")


def _op_at(op: Op, env: Mapping[sympy.Symbol, int]) -> Op:
    operands = tuple(attrs.evolve(o, info=o.info.at(env)) for o in op.operands)

    def value(x: Any) -> Any:
        if isinstance(x, Operand):
            return operands[x.index]
        if isinstance(x, list | tuple):
            return [value(y) for y in x]
        return evaluate(x, env) if isinstance(x, sympy.Expr) else x

    arguments = {name: value(x) for name, x in op.arguments.items()}
    return attrs.evolve(
        op, arguments=arguments, operands=operands, outputs=tuple(i.at(env) for i in op.outputs)
    )


def leaf_paths(call: Any) -> tuple[str, ...]:
    """The path of each leaf within `call`, an `(args, kwargs)`, in order: `args[0]`, `input_ids`.

    Raises ValueError for containers that cannot name what they hold.
    """
    paths = []
    for (group, *rest), _ in pytree.tree_flatten_with_path(call)[0]:
        is_keyword = getattr(group, "idx", 0) == 1
        head, shown = (rest[0].key, rest[1:]) if is_keyword else ("args", rest)
        paths.append(f"{head}{pytree.keystr(tuple(shown))}")
    return tuple(paths)


def flatten_tensors(value: Any, found: Callable[[fx.Node], bool]) -> list[fx.Node]:
    """The nodes within an argument (lists and tuples included) for which `found` holds."""
    if isinstance(value, fx.Node):
        return [value] if found(value) else []
    if isinstance(value, list | tuple):
        return [node for item in value for node in flatten_tensors(item, found)]
    return []
