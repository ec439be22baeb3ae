"""The applied program run exactly, in a finite field, beside the original: a second engine.

Both run on torch itself; only what an op does with float numbers is replaced (`field.py`). So
slices, buffers, loops and `out=` are the real ones, no tolerance is needed, and nothing is shared
with the symbolic proof. A run is at concrete sizes and inputs: it is reported as
that, not as proof.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode

from quire.capture.program import Program, evaluate
from quire.verify import field
from quire.verify.field_ops import ARITHMETIC, NATIVE, Unsupported, attention, plainly


@attrs.frozen
class ExactRun:
    """`equal`, None if it could not be run (`reason`). `chance` bounds the probability that
    different programs pass: for each of `ops` ops 2/P, to the power of the number of runs."""

    equal: bool | None
    reason: str
    runs: int
    chance: float


class Field(TorchDispatchMode):
    """Ops on float tensors act on field elements."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if isinstance(kwargs.get("dtype"), torch.dtype) and kwargs["dtype"].is_floating_point:
            kwargs["dtype"] = torch.float64
        name = func._schema.name.split("::")[1]
        floats = any(isinstance(x, Tensor) and x.is_floating_point() for x in _leaves(args))
        if name in NATIVE or func.is_view:
            return func(*args, **kwargs)
        if name in MAKE:
            made = func(*args, **kwargs)
            return field.encoded(made) if made.is_floating_point() else made
        if name == "_to_copy":
            return _converted(args[0], kwargs.get("dtype"))
        if not floats and not _makes_floats(name):
            return func(*args, **kwargs)
        if name.rstrip("_") not in ARITHMETIC:
            raise Unsupported(f"no exact form of {func}")
        out = kwargs.pop("out", None)
        if name.endswith("_") and not name.startswith("_"):
            out = args[0]
        made = ARITHMETIC[name.rstrip("_")](*args, **kwargs)
        return made if out is None else out.copy_(made)


MAKE = {
    "full", "zeros", "ones", "full_like", "zeros_like", "ones_like", "scalar_tensor", "arange",
    "new_zeros", "new_full", "new_ones", "linspace", "eye", "fill_", "lift_fresh_copy",
}  # fmt: skip


def _leaves(args: Any) -> list[Any]:
    return [y for x in args for y in (_leaves(x) if isinstance(x, list | tuple) else [x])]


def _makes_floats(name: str) -> bool:
    return name in ("div", "true_divide", "mean", "sqrt", "exp", "log", "sin", "cos")


def _converted(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is None or dtype.is_floating_point == x.is_floating_point():
        return x.clone() if dtype is None or x.is_floating_point() else x.to(dtype)
    if dtype is torch.bool:
        return x != 0
    if not dtype.is_floating_point:
        raise Unsupported("a float made an integer")
    return field.encoded(x)


def exact_run(
    program: Program, source: str, *, part: int = 3, seeds: int = 2, most: int = 1 << 22
) -> ExactRun:
    """Run `source` and `program`, which it was made from, on the same field elements.

    Lengths are short, `part` is the size of every part. Programs of more than `most` elements of
    input are not run.
    """
    lengths = {s.name: max(s.lo, min(s.hint, 7)) for s in program.symbols}
    total = sum(int(evaluate(program.info(i.node).numel, lengths)) for i in program.inputs)
    chance = min(1.0, 2 * len(program.ops) / field.P) ** seeds
    if total > most:
        return ExactRun(None, f"{total} elements are too many to run exactly", 0, 1.0)
    names = _names(source)
    for seed in range(seeds):
        inputs = _inputs(program, lengths, seed)
        try:
            with torch.no_grad(), Field():
                want = _original(program, inputs, names)
                got = _applied(program, source, inputs, part, names)
        except (Unsupported, RuntimeError, IndexError, TypeError) as error:
            return ExactRun(None, str(error).splitlines()[0], 0, 1.0)
        for k, (g, w) in enumerate(zip(got, want, strict=True)):
            if isinstance(w, Tensor) and not _same(g, w):
                return ExactRun(
                    False, f"output {k} differs, parts of {part}, seed {seed}", seed + 1, 0
                )
    return ExactRun(True, "", seeds, chance)


def _same(g: Tensor, w: Tensor) -> bool:
    if g.shape != w.shape or not w.is_floating_point():
        return g.shape == w.shape and torch.equal(g, w)
    return torch.equal(field.unpack(g)[0], field.unpack(w)[0])


def _inputs(program: Program, lengths: Any, seed: int) -> dict[fx.Node, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for item in program.inputs:
        info = program.info(item.node)
        shape = [evaluate(s, lengths) for s in info.shape]
        if info.dtype.is_floating_point:
            p = torch.randint(0, field.P, shape, generator=generator).double()
            q = torch.randint(0, field.Q, shape, generator=generator).double()
            made[item.node] = field.pack(p, q)
        else:
            made[item.node] = torch.randint(0, 2, shape, generator=generator).to(info.dtype)
    return made


def _names(source: str) -> set[str]:
    """The variables that `forward` assigns: where both programs settle what they hold."""
    body = source[source.index("\ndef forward(") :]
    return {line.split(" = ")[0].strip() for line in body.splitlines() if " = " in line}


class _Stepwise(fx.Interpreter):
    def __init__(self, program: Program, names: set[str]) -> None:
        super().__init__(fx.GraphModule(torch.nn.Module(), program.graph))
        self.names = names

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if "scaled_dot_product_attention" in str(target):
            return attention(*args, **kwargs)
        return super().call_function(target, args, kwargs)

    def run_node(self, n: fx.Node) -> Any:
        made = super().run_node(n)
        return _settled(made) if n.name in self.names else made


@plainly
def _settled(x: Any) -> Any:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    return field.settled(x) if bool((field.unpack(x)[1] == field.UNKNOWN).any()) else x


def _original(program: Program, inputs: Mapping[fx.Node, Tensor], names: set[str]) -> list[Any]:
    made = _Stepwise(program, names).run(*(x.clone() for x in inputs.values()))
    return list(made) if isinstance(made, list | tuple) else [made]


class _Aten:
    """`aten` of the emitted text, attention taken out."""

    def __getattr__(self, name: str) -> Any:
        if name == "scaled_dot_product_attention":
            return _Overload()
        return getattr(torch.ops.aten, name)


class _Overload:
    default = staticmethod(attention)


def _applied(
    program: Program, source: str, inputs: Mapping[fx.Node, Tensor], part: int, names: set[str]
) -> list[Any]:
    """`source`, each variable of `forward` settled once it is assigned."""
    scope: dict[str, Any] = {}
    exec(compile(_settling(source, names), "<applied>", "exec"), scope)
    scope |= {"aten": _Aten(), "causal_rows": causal_rows, "settled_": _settled}
    given = {node: x.clone() for node, x in inputs.items()}
    weights = {i.target: given[i.node] for i in program.inputs if i.kind != "user"}
    users = [given[i.node] for i in program.inputs if i.kind == "user"]
    return list(scope["forward"](weights, _EveryPart(part), *users))


def _settling(source: str, names: set[str]) -> str:
    head, mark, body = source.partition("\ndef forward(")
    rows = []
    for line in body.splitlines():
        rows.append(line)
        word = line.split(" = ")[0].strip()
        if " = " in line and word in names and word.isidentifier():
            rows.append(f"    {word} = settled_({word})")
    return head + mark + "\n".join(rows) + "\n"


class _EveryPart:
    def __init__(self, size: int) -> None:
        self.size = size

    def __getitem__(self, name: str) -> int:
        return self.size


def causal_rows(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: int = 0, *, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """Row i of the part sees the keys 0 … is_causal + i."""
    return attention(
        query, key, value, is_causal=True, scale=scale, enable_gqa=enable_gqa, first=is_causal
    )
