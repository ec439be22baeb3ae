"""A refutation that runs: concrete inputs and part sizes at which applied and original differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import torch
from torch import Tensor, fx, nn

from quire.capture.program import Program, evaluate

TOLERANCE = 1e-3


@attrs.frozen
class Witness:
    """Where the two differ: the lengths, the part size, the seed, and by how much."""

    lengths: dict[str, int]
    part: int
    seed: int
    found: str
    script: str


def search(program: Program, source: str, *, seeds: int = 2, most: int = 1 << 27) -> Witness | None:
    """A run in which the applied program's outputs are not the original's; None if there was none
    among those tried, or a run would take more than `most` elements."""
    total = sum(
        int(evaluate(program.info(i.node).numel, _lengths(program))) for i in program.inputs
    )
    if total > most:
        return None
    lengths = _lengths(program)
    original = fx.GraphModule(nn.Module(), program.graph)
    scope: dict[str, Any] = {}
    exec(compile(source, "<applied>", "exec"), scope)
    for seed in range(seeds):
        inputs = _inputs(program, lengths, seed)
        with torch.no_grad():
            wanted = original(*[x.clone() for x in inputs.values()])
        for part in parts(lengths):
            found = _run(program, scope["forward"], inputs, wanted, part)
            if found:
                names = {str(k): v for k, v in lengths.items()}
                script = _script(program, source, original.code, lengths, part, seed)
                return Witness(names, part, seed, found, script)
    return None


def parts(lengths: Any) -> Iterator[int]:
    yield from (3, 1, 7, 2, 16, 1 << 30)


def _lengths(program: Program) -> Any:
    return {s.name: max(s.lo, min(s.hint, 13 if s.lo <= 13 else s.lo)) for s in program.symbols}


def _inputs(program: Program, lengths: Any, seed: int) -> dict[str, Tensor]:
    made = {}
    for k, item in enumerate(program.inputs):
        info = program.info(item.node)
        shape = [evaluate(s, lengths) for s in info.shape]
        made[item.node.name] = random(shape, info.dtype, 1000 * seed + k)
    return made


def random(shape: list[int], dtype: torch.dtype, seed: int) -> Tensor:
    """Seeded values: floats in [0.1, 1.1), integers and truth values of two kinds."""
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return (torch.rand(shape, generator=generator) + 0.1).to(dtype)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)


class _EveryPart:
    def __init__(self, size: int) -> None:
        self.size = size

    def __getitem__(self, name: str) -> int:
        return self.size


def _run(program: Program, forward: Any, inputs: Any, wanted: Any, part: int) -> str:
    given = {name: x.clone() for name, x in inputs.items()}
    weights = {i.target: given[i.node.name] for i in program.inputs if i.kind != "user"}
    users = [given[i.node.name] for i in program.inputs if i.kind == "user"]
    try:
        with torch.no_grad():
            got = forward(weights, _EveryPart(part), *users)
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        return f"the applied program fails: {error}"
    for name, x in given.items():
        if not torch.equal(x, inputs[name]):
            return f"{name} was written to"
    wanted = wanted if isinstance(wanted, list | tuple) else [wanted]
    for k, (g, w) in enumerate(zip(got, wanted, strict=True)):
        if isinstance(w, Tensor) and not _close(g, w):
            return f"output {k} differs by {_difference(g, w)}"
    return ""


def _close(g: Tensor, w: Tensor) -> bool:
    if g.shape != w.shape or g.dtype != w.dtype:
        return False
    if not w.is_floating_point():
        return torch.equal(g, w)
    return torch.allclose(g.double(), w.double(), rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)


def _difference(g: Tensor, w: Tensor) -> str:
    if g.shape != w.shape:
        return f"its shape {tuple(g.shape)}, wanted {tuple(w.shape)}"
    return f"{(g.double() - w.double()).abs().max().item():.3g}"


def _script(program: Program, source: str, code: str, lengths: Any, part: int, seed: int) -> str:
    """Both programs as text, run on the same seeded inputs; exits with an error if they differ."""
    rows = []
    for k, item in enumerate(program.inputs):
        info = program.info(item.node)
        shape = [evaluate(s, lengths) for s in info.shape]
        rows.append((item.node.name, item.kind, item.target, shape, str(info.dtype), k))
    return f'''"""Applied and original on one input: fails where they differ."""
import collections
import operator
import torch
from torch import device, inf, nan

{code.strip()}

original = forward

{source}

inputs, weights, users = {{}}, {{}}, []
for name, kind, target, shape, dtype, k in {rows!r}:
    dtype = getattr(torch, dtype.removeprefix("torch."))
    generator = torch.Generator().manual_seed({1000 * seed} + k)
    x = torch.rand(shape, generator=generator) + 0.1 if dtype.is_floating_point else \\
        torch.randint(0, 2, shape, generator=generator)
    inputs[name] = x.to(dtype)
    (users.append(x.to(dtype)) if kind == "user" else weights.update({{target: x.to(dtype)}}))
parts = collections.defaultdict(lambda: {part})
with torch.no_grad():
    wanted = original(None, *[x.clone() for x in inputs.values()])
    got = forward(weights, parts, *users)
wanted = wanted if isinstance(wanted, (list, tuple)) else [wanted]
for g, w in zip(got, wanted):
    torch.testing.assert_close(g, w, rtol={TOLERANCE}, atol={TOLERANCE})
'''
