"""A kernel and the graph it came from in the finite field, compared without tolerance.

The text that is compiled is run, with its tables, by several workers, one after another between two
barriers, in two orders; of the runtime only who takes which block of keys and the sums within
`q.dot`, `q.attend` and `q.merge` are this module's own. Nothing is shared with the symbolic proof
but the parser.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, fx, nn

from quire.capture.program import Program, evaluate
from quire.verify import field
from quire.verify.exact import ExactRun, Field
from quire.verify.field_ops import Unsupported, attention, plainly
from quire.verify.kernel.run.call import WORKERS, run_kernel
from quire.verify.kernel.run.cells import WrongRun
from quire.verify.kernel.run.graph import OPS, softmax
from quire.verify.kernel.run.numbers import FieldNumbers, canonical
from quire.verify.kernel.tables import Tables
from quire.verify.value import NoMeaning

MOST = 1 << 23
"""Elements of inputs and weights up to which a program is run."""

Lengths = Mapping[Any, int]
Inputs = Mapping[fx.Node, Tensor]


def exact_kernel(
    program: Program,
    source: str,
    tables: Tables,
    ranges: Mapping[str, tuple[int, int]],
    *,
    seeds: int = 2,
    most: int = MOST,
) -> ExactRun:
    """Run `source` with `tables`, and `program`, on the same field elements. `ranges`: what the
    integers of an input may be, by its name."""
    lengths = small(program, tables)
    total = sum(int(evaluate(program.info(i.node).numel, lengths)) for i in program.inputs)
    if total > most:
        return ExactRun(None, f"{total} elements are too many to run exactly", 0, 1.0)
    found = ExactRun(None, "", 0, 1.0)
    for shifted in (False, True):
        found = _runs(program, source, tables, ranges, lengths, seeds, shifted)
        if found.equal is not False:
            break
    # Either way to take a softmax serves, so that there are two chances to be equal by accident.
    return attrs.evolve(found, chance=2 * found.chance) if found.equal else found


def _runs(
    program: Program, source: str, tables: Tables, ranges: Mapping[str, tuple[int, int]],
    lengths: Lengths, seeds: int, shifted: bool,
) -> ExactRun:  # fmt: skip
    chance = min(1.0, 2 * len(program.ops) / field.P) ** seeds
    buffers = stands_for(tables)
    settles = set(buffers.values())
    for run in range(seeds):
        order = range(WORKERS) if run % 2 == 0 else reversed(range(WORKERS))
        try:
            given, want = _drawn(program, ranges, lengths, run, settles, shifted)
        except (Unsupported, RuntimeError, IndexError, TypeError) as error:
            return ExactRun(None, f"the graph: {str(error).splitlines()[0]}", 0, 1.0)
        try:
            got = run_kernel(
                source, tables, by_target(program, given), named(program, lengths),
                FieldNumbers(), list(order), buffers,
            )  # fmt: skip
        except WrongRun as error:
            return ExactRun(False, f"{error} (run {run})", run + 1, 0)
        except (Unsupported, NoMeaning, RuntimeError, IndexError, TypeError, KeyError) as error:
            return ExactRun(None, f"the kernel: {str(error).splitlines()[0]}", 0, 1.0)
        for name, value in want.items():
            if not _equal(got.get(name), value):
                return ExactRun(False, f"{name} differs, run {run}", run + 1, 0)
    return ExactRun(True, "", seeds, chance)


DRAWS = 12
"""Inputs drawn for a run until the graph takes them: an index may be computed of two inputs."""


def _drawn(
    program: Program, ranges: Mapping[str, tuple[int, int]], lengths: Lengths, run: int,
    settles: set[str], shifted: bool,
) -> tuple[dict[fx.Node, Tensor], dict[str, Tensor]]:  # fmt: skip
    """Inputs that the graph takes, and its results."""
    for draw in range(DRAWS):
        given = inputs_of(program, lengths, ranges, run + 100 * draw)
        try:
            with torch.no_grad(), _Exact(shifted):
                return given, results(program, given, settles)
        except IndexError:
            if draw == DRAWS - 1:
                raise
    raise IndexError("no inputs that the graph takes")


def stands_for(tables: Tables) -> dict[str, str]:
    """The node that a buffer is said to be, of those in use. What is in it gets residues that do
    not say how it was computed, on both sides, so that exp may be taken of it again. A wrong hint
    can make equal programs differ, never the other way."""
    used = {b.name for b in tables.slots if b.role == "temp"}
    used |= {name for names in tables.private for name in names}
    return {name: node for name in used if (node := tables.holds.get(name.removesuffix("p"), ""))}


def _equal(got: Tensor | None, want: Tensor) -> bool:
    if not want.numel():
        return True
    if got is None or got.numel() != want.numel():
        return False
    got = got.reshape(want.shape)
    if not want.is_floating_point():
        return torch.equal(got.to(want.dtype), want)
    same = (field.unpack(got)[0] == field.unpack(want)[0]) & (got.isinf() == want.isinf())
    return bool((same | (got.isinf() & (got == want))).all())


def by_target(program: Program, given: Inputs) -> dict[tuple[bool, str], Tensor]:
    return {(i.kind == "user", i.target): given[i.node] for i in program.inputs}


def named(program: Program, lengths: Lengths) -> dict[str, int]:
    return {str(s.name): int(lengths[s.name]) for s in program.symbols}


def small(program: Program, tables: Tables) -> dict[Any, int]:
    """Short lengths that the kernel serves."""
    most = {s.name: tables.longest[str(s.name)] for s in program.symbols}
    return {s.name: max(s.lo, min(most[s.name], 3)) for s in program.symbols}


def _element(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    p = torch.randint(0, field.P, tuple(shape), generator=generator).double()
    return field.pack(p, torch.randint(0, field.Q, tuple(shape), generator=generator).double())


def inputs_of(
    program: Program, lengths: Lengths, ranges: Mapping[str, tuple[int, int]], seed: int
) -> dict[fx.Node, Tensor]:  # fmt: skip
    """Seeded inputs and weights. Constants are as they are where they are no floats."""
    generator = torch.Generator().manual_seed(seed)
    made: dict[fx.Node, Tensor] = {}
    for item in program.inputs:
        info = program.info(item.node)
        shape = [int(evaluate(s, lengths)) for s in info.shape]
        held = program.state.get(item.target) if item.kind != "user" else None
        if info.dtype.is_floating_point:
            if held is None or item.kind == "parameter":
                made[item.node] = _element(shape, generator)
            else:
                made[item.node] = field.encoded(held.detach())
        elif held is not None:
            made[item.node] = held.detach().clone()
        else:
            low, high = ranges.get(item.target, ranges.get(item.node.name, (0, 1)))
            high = 1 if info.dtype == torch.bool else min(high, 299)
            made[item.node] = torch.randint(
                max(low, 0), high + 1, shape, generator=generator
            ).to(info.dtype)  # fmt: skip
    return made


# --- the graph --------------------------------------------------------------------------------


class _Exact(Field):
    """Ops on field elements, in the functions that kernels are written in. `shifted`: a softmax
    subtracts its largest, as it does in floats; it cancels unless exp was taken before."""

    def __init__(self, shifted: bool) -> None:
        super().__init__()
        self.shifted = shifted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        if self.shifted and name in ("_softmax", "_safe_softmax"):
            return softmax(*args)
        if name in OPS:
            found = OPS[name](func, *args, **(kwargs or {}))
            if found is not NotImplemented:
                return found
        return super().__torch_dispatch__(func, types, args, kwargs)


class _Graph(fx.Interpreter):
    def __init__(self, program: Program, settles: set[str]) -> None:
        super().__init__(fx.GraphModule(nn.Module(), program.graph), garbage_collect_values=False)
        self.settles = settles

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if "scaled_dot_product_attention" in str(target):
            return attention(*args, **kwargs)
        if target is torch.ops.aten.view.default:  # our results may lie otherwise
            target = torch.ops.aten.reshape.default
        return super().call_function(target, args, kwargs)

    def run_node(self, n: fx.Node) -> Any:
        made = super().run_node(n)
        return _settled(made) if n.name in self.settles and n.op == "call_function" else made


@plainly
def _settled(x: Any) -> Any:
    return canonical(x) if isinstance(x, Tensor) and x.is_floating_point() else x


def results(program: Program, given: Inputs, settles: set[str]) -> dict[str, Tensor]:
    """Outputs by "output k", and inputs changed in place by "input name", as the graph makes
    them."""
    places = [n for n in program.graph.nodes if n.op == "placeholder"]
    run = _Graph(program, settles)
    run.run(*[given[n].clone() if n in given else None for n in places])
    env = {n.name: v for n, v in run.env.items()}
    found = {
        f"output {k}": env[n.name]
        for k, n in enumerate(program.outputs)
        if isinstance(n, fx.Node) and isinstance(env[n.name], Tensor)
    }
    names = {i.node: i.target for i in program.inputs}
    found |= {f"input {names[n]}": env[v.name] for n, v in program.writes.items()}
    return found
