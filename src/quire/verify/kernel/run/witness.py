"""A refutation that runs: inputs at which a kernel, run in float64, does not give what the graph
gives in torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from quire.capture.program import Program, evaluate
from quire.verify.field_ops import Unsupported
from quire.verify.kernel.run.call import WORKERS, run_kernel
from quire.verify.kernel.run.cells import WrongRun
from quire.verify.kernel.run.exact import MOST, small
from quire.verify.kernel.run.numbers import RealNumbers
from quire.verify.kernel.tables import Tables
from quire.verify.value import NoMeaning

TOLERANCE = 1e-3
"""Of 1 + the largest element of an output."""

Row = tuple[bool, str, list[int], str, Any]
"""An input (True) or weight: its name, shape, dtype, and its values, a range, or None."""


@attrs.frozen
class Difference:
    """What differs, and a script that fails when run."""

    found: str
    script: str


def search(
    program: Program, source: str, tables: Tables, ranges: Mapping[str, tuple[int, int]],
    seeds: int = 2,
) -> Difference | None:  # fmt: skip
    """A run whose outputs are not the graph's; None if none of those tried is, or none can be
    made."""
    lengths = small(program, tables)
    rows = [_row(program, i, lengths, ranges) for i in program.inputs]
    if sum(torch.Size(r[2]).numel() for r in rows) > MOST:
        return None
    forward, labels = _graph(program)
    sizes = {str(s.name): int(lengths[s.name]) for s in program.symbols}
    for seed in range(seeds):
        for order in (range(WORKERS), reversed(range(WORKERS))):
            case = (rows, sizes, seed, list(order))
            try:
                found = difference(forward.forward, labels, source, tables, *case)
            except (Unsupported, NoMeaning, RuntimeError, IndexError, TypeError, KeyError):
                return None  # a graph or a source that cannot be run is no refutation
            if found:
                return Difference(found, _script(forward.code, labels, source, tables, *case))
    return None


def difference(
    forward: Any, labels: Sequence[str], source: str, tables: Tables, rows: Sequence[Row],
    sizes: Mapping[str, int], seed: int, order: Sequence[int],
) -> str:  # fmt: skip
    """What differs between the graph's `forward` and the kernel; "" if nothing does."""
    made = [_made(row, 1000 * seed + k) for k, row in enumerate(rows)]
    with torch.no_grad():
        reals = (m.double() if m.is_floating_point() else m.clone() for m in made)
        want = dict(zip(labels, forward(*reals), strict=True))
        given = {(user, name): m for (user, name, *_), m in zip(rows, made, strict=True)}
        try:
            got = run_kernel(source, tables, given, sizes, RealNumbers(), order)
        except WrongRun as error:
            return str(error)
    for label, value in want.items():
        if not value.numel():
            continue
        if label not in got or got[label].numel() != value.numel():
            return f"{label} is not there"
        a, b = got[label].reshape(value.shape), value.double()
        known = b.isfinite()
        room = TOLERANCE * (1 + float(b[known].abs().max() if bool(known.any()) else 0))
        off = (a - b)[known].abs()
        if off.numel() and not float(off.max()) <= room:
            return f"{label} differs by {float(off.max()):.3g}"
    return ""


def _row(program: Program, item: Any, lengths: Any, ranges: Any) -> Row:
    info = program.info(item.node)
    shape = [int(evaluate(s, lengths)) for s in info.shape]
    held = program.state.get(item.target) if item.kind != "user" else None
    values: Any = None
    if held is not None and (not info.dtype.is_floating_point or item.kind != "parameter"):
        values = held.tolist()
    elif not info.dtype.is_floating_point:
        low, high = ranges.get(item.target, ranges.get(item.node.name, (0, 1)))
        values = f"{max(low, 0)} {1 if info.dtype == torch.bool else min(high, 299)}"
    return item.kind == "user", item.target, shape, str(info.dtype), values


def _made(row: Row, seed: int) -> Tensor:
    _, _, shape, name, values = row
    dtype = getattr(torch, name.removeprefix("torch."))
    generator = torch.Generator().manual_seed(seed)
    if isinstance(values, str):
        low, high = map(int, values.split())
        return torch.randint(low, high + 1, shape, generator=generator).to(dtype)
    if values is not None:
        return torch.tensor(values, dtype=dtype).reshape(shape)
    return (torch.randn(shape, generator=generator) / 2).to(dtype)


def _graph(program: Program) -> tuple[fx.GraphModule, list[str]]:
    """The graph in float64, with one output for each tensor to compare: what a kernel is proved
    to compute is free of rounding."""
    made = fx.Graph()
    known: dict[fx.Node, fx.Node] = {}
    inputs = {i.node: i for i in program.inputs}
    for item in program.inputs:
        known[item.node] = made.placeholder(item.node.name)
    for node in program.graph.nodes:
        if node.op == "output":
            continue
        if node.op == "placeholder":
            if node not in inputs:
                known[node] = made.call_function(_nothing)
            continue
        copy = known[node] = made.node_copy(node, lambda n: known[n])
        copy.args, copy.kwargs = map_aggregate((copy.args, copy.kwargs), _as_double)
    wanted = {
        f"output {k}": n
        for k, n in enumerate(program.outputs)
        if isinstance(n, fx.Node) and n in program.infos
    }
    wanted |= {f"input {inputs[n].target}": v for n, v in program.writes.items()}
    made.output(tuple(known[n] for n in wanted.values()))
    return fx.GraphModule(nn.Module(), made), list(wanted)


def _as_double(leaf: Any) -> Any:
    return torch.float64 if isinstance(leaf, torch.dtype) and leaf.is_floating_point else leaf


def _nothing() -> None:
    """What stands for an argument that is no tensor."""


def _script(
    code: str, labels: Sequence[str], source: str, tables: Tables, rows: Sequence[Row],
    sizes: Mapping[str, int], seed: int, order: Sequence[int],
) -> str:  # fmt: skip
    return f'''"""A kernel and its graph on one input: fails where they differ."""
import operator
import torch
from torch import device, inf, nan

from quire.verify.kernel.run.witness import difference
from quire.verify.kernel.tables import Tables

{code.strip().replace("(self, ", "(").replace("(self)", "()")}

SOURCE = {source!r}
TABLES = Tables.parse({tables.text()!r})
ROWS = {rows!r}
SIZES = {dict(sizes)!r}
found = difference(
    forward, {list(labels)!r}, SOURCE, TABLES, ROWS, SIZES, {seed}, {list(order)!r}
)
if found:
    raise SystemExit(found)
print("equal")
'''
