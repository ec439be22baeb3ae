"""`torch.compile(model, backend="quire")`: each graph that torch captures, chunked.

Options: `torch.compile(model, backend="quire", options={"memory": "512MiB"})`. The budget holds for
each graph by itself; `fullgraph=True` makes sure that there is one. torch finds this backend
through the entry point `torch_dynamo_backends` of the installed package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import fx, nn
from torch._guards import tracing
from torch.export import Dim

from quire.errors import QuireError
from quire.pipeline import chunk

OPTIONS = ("memory",)


def quire(
    graph: fx.GraphModule,
    inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """`graph` in parts. `inputs` are those of one call: tensors, weights among them, and the ints
    that stand for lengths that vary. These keep the range that `torch._dynamo.mark_dynamic` gave
    them, and the plan is made for the longest; without a range, for the length at hand.

    Raises QuireError where gradients are asked for or an option is not known, and what
    `quire.chunk` raises.
    """
    given = dict(options or {})
    unknown = [*(name for name in given if name not in OPTIONS), *(["mode"] if mode else [])]
    if unknown:
        raise QuireError(
            f"the backend takes no {', '.join(unknown)}",
            where='torch.compile(…, backend="quire")',
            allowed=", ".join(OPTIONS),
            fix='pass options={"memory": "512MiB"}, and leave the rest out',
        )
    if torch.is_grad_enabled() and any(
        isinstance(x, torch.Tensor) and x.requires_grad for x in inputs
    ):
        raise QuireError(
            "gradients are asked for: Quire compiles inference only",
            where='torch.compile(…, backend="quire")',
            allowed="calls within torch.inference_mode() or torch.no_grad()",
            fix="with torch.inference_mode(): compiled(...)",
        )
    tensors = _Tensors(graph)
    example = _only_tensors(inputs)
    # Out of the trace that is under way: its guards must not take in what export finds.
    with torch.no_grad(), tracing(None):
        small = chunk(
            tensors, example, memory=given.get("memory"), dynamic_shapes=(tensors.dims(),)
        )
    return lambda *args: small(*_only_tensors(args))


def _only_tensors(inputs: Sequence[Any]) -> tuple[torch.Tensor, ...]:
    return tuple(x for x in inputs if isinstance(x, torch.Tensor))


class _Tensors(nn.Module):
    """`graph` as a function of its tensors alone: the ints among its inputs, which are lengths of
    theirs, are read off their shapes. Raises QuireError for an int that no tensor has."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.graph = graph
        values = [n.meta["example_value"] for n in graph.graph.nodes if n.op == "placeholder"]
        self.shapes = [tuple(x.shape) for x in values if isinstance(x, torch.Tensor)]
        found = {
            size.node.expr: (k, d)
            for k, shape in enumerate(self.shapes)
            for d, size in enumerate(shape)
            if isinstance(size, torch.SymInt)
        }
        self.places: list[tuple[int, int] | None] = []
        for value in values:
            length = isinstance(value, torch.SymInt)
            if length and value.node.expr not in found:
                raise QuireError(
                    f"the length {value} is the size of no tensor",
                    allowed="ints that are sizes of tensors",
                    fix="torch.compile(…, dynamic=False) compiles for each value",
                )
            self.places.append(found[value.node.expr] if length else None)

    def forward(self, *tensors: torch.Tensor) -> Any:
        left = iter(tensors)
        return self.graph(
            *(next(left) if p is None else tensors[p[0]].shape[p[1]] for p in self.places)
        )

    def dims(self) -> tuple[dict[int, Any], ...]:
        """The lengths that vary, for `torch.export`, tensor by tensor."""
        return tuple(
            {d: _dim(size) for d, size in enumerate(shape) if isinstance(size, torch.SymInt)}
            for shape in self.shapes
        )


def _dim(size: torch.SymInt) -> Any:
    """A dim that varies, in the range that torch knows of."""
    known = size.node.shape_env.bound_sympy(size.node.expr)
    bounds = {"min": known.lower, "max": known.upper}
    return Dim.DYNAMIC(**{k: int(v) for k, v in bounds.items() if isinstance(v, sympy.Integer)})
