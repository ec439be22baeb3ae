"""Small programs to rewrite, and a way to run them."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from quire.capture.export import capture
from quire.capture.program import Program, evaluate
from quire.rewrite.index_function import IndexFunction
from quire.rewrite.terms import Affine, Atom, Both, If

aten: Any = torch.ops.aten
SDPA = aten.scaled_dot_product_attention.default


class Call(nn.Module):
    """A function as a module; tensors given by keyword are its buffers."""

    def __init__(self, function: Callable[..., Any], **buffers: torch.Tensor) -> None:
        super().__init__()
        self.function = function
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, *args: torch.Tensor) -> Any:
        return self.function(*args, **dict(self.named_buffers()))


def program_of(
    function: Callable[..., Any],
    *args: torch.Tensor,
    dynamic: Any = None,
    **buffers: torch.Tensor,
) -> Program:
    shapes = None if dynamic is None else {"args": tuple(dynamic)}
    return quiet_capture(Call(function, **buffers), args, dynamic_shapes=shapes)


def quiet_capture(*args: Any, **kwargs: Any) -> Program:
    """`capture`, without a warning that torch 2.13 gives about itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        return capture(*args, **kwargs)


def run(program: Program, *args: Any) -> list[Any]:
    """The program's outputs; `args` are the values of its placeholders that are not state."""
    state = {i.node: program.state[i.target] for i in program.inputs if i.kind != "user"}
    given = iter(args)
    places = [n for n in program.graph.nodes if n.op == "placeholder"]
    values = [state[n] if n in state else next(given) for n in places]
    with torch.no_grad():
        interpreter = fx.Interpreter(fx.GraphModule({}, program.graph))
        return pytree.tree_leaves(interpreter.run(*values, enable_io_processing=False))


def count(program: Program, *targets: Any) -> int:
    return sum(op.target in targets for op in program.ops.values())


def calls(program: Program, target: Any) -> list[Any]:
    return [op for op in program.ops.values() if op.target is target]


def check_equal(
    before: Program, after: Program, *args: Any, tolerance: float = 1e-5, facts: bool = True
) -> None:
    """Outputs equal within `tolerance`, and every fact of the new program is true of its run."""
    for a, b in zip(run(before, *args), run(after, *args), strict=True):
        torch.testing.assert_close(b, a, rtol=tolerance, atol=tolerance)
    if facts:
        check_facts(after, *args)


def check_facts(program: Program, *args: Any) -> None:
    """Shapes, dtypes and strides in the program's tables are those of a run."""
    env: dict[Any, int] = {}
    places = [n for n in program.graph.nodes if n.op == "placeholder"]
    state = {i.node: program.state[i.target] for i in program.inputs if i.kind != "user"}
    given = iter(args)
    inputs = {n: state[n] if n in state else next(given) for n in places}
    for symbol in program.symbols:
        env[symbol.name] = inputs[symbol.source].shape[symbol.dim]

    class Checked(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n in program.infos and isinstance(value, torch.Tensor):
                info = program.info(n).at(env)
                assert (tuple(value.shape), value.dtype) == (info.shape, info.dtype), n
                strides = zip(value.shape, value.stride(), info.stride, strict=True)
                assert all(size <= 1 or s == t for size, s, t in strides), (n, value.stride(), info)
            return value

    with torch.no_grad():
        Checked(fx.GraphModule({}, program.graph)).run(*inputs.values(), enable_io_processing=False)


def materialise(f: IndexFunction, env: dict[Any, int]) -> torch.Tensor:
    """The tensor that an index function describes, element by element."""
    shape = [evaluate(s, env) for s in f.shape]
    flat = [_at(f.value, place, env) for place in itertools.product(*map(range, shape))]
    return torch.from_numpy(np.array(flat).reshape(shape)).to(f.dtype)


def _at(value: Any, place: tuple[int, ...], env: dict[Any, int]) -> Any:
    if isinstance(value, bool | float):
        return value
    if isinstance(value, If):
        return _at(value.then if _at(value.cond, place, env) else value.other, place, env)
    if isinstance(value, Both):
        parts = [_at(p, place, env) for p in value.parts]
        return all(parts) if value.op == "and" else any(parts)
    if isinstance(value, Atom):
        number = _at(value.expr, place, env)
        return {">=": number >= 0, "==": number == 0, "!=": number != 0}[value.op]
    assert isinstance(value, Affine)
    total = value.const
    for key, factor in value.terms:
        total += factor * (place[key] if isinstance(key, int) else evaluate(key, env))
    return total
