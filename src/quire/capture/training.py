"""The training step of a model → torch.export program: loss and all, with gradients in mind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from quire.capture.export import advice, first_line, line_in_model
from quire.capture.losses import Written
from quire.errors import CaptureError


def export_training(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    free: Mapping[int, Mapping[int, Any]] | None = None,
) -> ExportedProgram:
    """`model(*args, **kwargs)` as it trains (or as it is in evaluation, if `model.training` is
    False). Inputs that are one tensor, such as ids given as labels too, stay two inputs.

    `free` gives the `torch.export.Dim` of sizes that may differ from call to call: the number of
    a leaf of `(args, kwargs)` → dim → its Dim.

    Raises CaptureError, naming the line in the model.
    """
    given, kwargs = _apart((tuple(args), dict(kwargs or {})))
    shapes: Any = None
    if free:
        shapes = torch.export.ShapesCollection()
        leaves = pytree.tree_leaves((given, kwargs))
        for number, dims in free.items():
            shapes[leaves[number]] = dict(dims)
    try:
        with torch.enable_grad(), Written():
            exported = torch.export.export(
                model, given, kwargs, dynamic_shapes=shapes, strict=False
            )
    except Exception as error:
        raise CaptureError(
            f"torch.export could not capture {type(model).__name__}: {first_line(error)}",
            where=line_in_model(error, model),
            allowed="models whose control flow does not depend on tensor values",
            fix=advice(str(error)),
        ) from error
    _refuse_stopped_gradients(exported)
    return exported


def _apart(values: Any) -> Any:
    """`values` with tensors that occur twice copied: torch.export would make one input of both."""
    seen: set[int] = set()

    def own(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        if id(x) in seen:
            return x.clone()
        seen.add(id(x))
        return x

    return pytree.tree_map(own, values)


def _refuse_stopped_gradients(exported: ExportedProgram) -> None:
    """`torch.no_grad` around what depends on a parameter would be lost: gradients would flow."""
    names = set(exported.graph_signature.inputs_to_parameters)
    reached: set[fx.Node] = set()
    for node in exported.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            reached.add(node)
        elif any(n in reached for n in node.all_input_nodes):
            stops = "wrap_with_set_grad_enabled" in str(node.target) and not node.args[0]
            if stops and _is_float(node):
                raise CaptureError(
                    "gradients are switched off within the model, for values that depend on "
                    "parameters",
                    where=str(node.meta.get("stack_trace", "")).strip().splitlines()[-1:][0]
                    if node.meta.get("stack_trace")
                    else node.name,
                    allowed="torch.no_grad around positions, masks and other constants",
                    fix="use x.detach() outside no_grad, or move this part out of the model",
                )
            if _is_float(node) or stops:
                reached.add(node)


def _is_float(node: fx.Node) -> bool:
    values = pytree.tree_leaves(node.meta.get("val"))
    return any(isinstance(v, torch.Tensor) and v.dtype.is_floating_point for v in values)
