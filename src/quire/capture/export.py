"""nn.Module or torch.export program → `Program`."""

from __future__ import annotations

import re
import sysconfig
import traceback
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from quire.capture.build import find_symbols, tables
from quire.capture.clean import clean
from quire.capture.program import Input, Program, leaf_paths
from quire.errors import CaptureError

_KINDS = {
    InputKind.PARAMETER: "parameter",
    InputKind.BUFFER: "buffer",
    InputKind.CONSTANT_TENSOR: "constant",
    InputKind.USER_INPUT: "user",
}


_STDLIB = sysconfig.get_path("stdlib")
_NOT_THE_USERS = re.compile(
    rf"[/\\](torch|quire)[/\\]|{re.escape(_STDLIB)}[/\\](?!site-packages|dist-packages)"
)

_PROGRAMS_OWN = re.compile(
    r"w|parts|rows|size|self|device|torch|aten|kernels|causal_rows|ranks|attention|GROUPS?|region_\d+"
)
"""What emitted programs call their own things: an input of that name goes by another there."""


def export(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> ExportedProgram:
    """`torch.export.export` without gradients; a failure becomes a CaptureError that names the
    line of the user's model."""
    try:
        with torch.no_grad():
            return torch.export.export(
                model, tuple(args), dict(kwargs or {}), dynamic_shapes=dynamic_shapes, strict=False
            )
    except Exception as error:
        raise CaptureError(
            f"torch.export could not capture {type(model).__name__}: {first_line(error)}",
            where=line_in_model(error, model),
            allowed="models that run on these inputs, and whose control flow does not depend on "
            "tensor values",
            fix=advice(str(error)),
        ) from error


def capture(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> Program:
    """The functional graph of `model(*args, **kwargs)`, in inference.

    `dynamic_shapes` is spelled as for `torch.export.export`. Raises CaptureError, naming the
    line in the model.
    """
    return from_exported(export(model, args, kwargs, dynamic_shapes))


def from_exported(
    exported: ExportedProgram, *, writes: bool = False, training: bool = False
) -> Program:
    """An exported program as a `Program`: decomposed no further than to functional ATen, so that
    composites with a fast kernel (linear, SDPA, norms, softmax, convolutions) stay whole.

    With `writes`, a user's input that the model changes in place is allowed: its new value is
    an entry of `Program.writes`, not an output.
    With `training`, a detach of what depends on a parameter stays.
    """
    with torch.no_grad(), warnings.catch_warnings():
        # torch's own use of its deprecated LeafSpec.
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        exported = exported.run_decompositions({})
    signature = exported.graph_signature
    changed: list[str] = []
    for spec in signature.output_specs:
        if writes and spec.kind is OutputKind.USER_INPUT_MUTATION:
            changed.append(str(spec.target))
        elif spec.kind is not OutputKind.USER_OUTPUT:
            raise CaptureError(
                f"the model changes its {spec.kind.name.lower().replace('_', ' ')} {spec.target}",
                allowed="models whose forward changes no buffer, parameter or input",
                fix="call model.eval(), or return the new value instead of writing it in place",
            )
    graph = fx.Graph()
    renamed: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(exported.graph, renamed)
    graph.output(output)
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    for node in placeholders:
        if _PROGRAMS_OWN.fullmatch(node.name):
            node._rename(f"{node.name}_input")
    in_spec = cast(pytree.TreeSpec, exported.call_spec.in_spec)
    paths = leaf_paths(pytree.tree_unflatten(list(range(in_spec.num_leaves)), in_spec))
    leaves_left = iter(paths)
    inputs: list[Input] = []
    constants: dict[str, Any] = {}
    for node, spec in zip(placeholders, signature.input_specs, strict=True):
        kind = _KINDS.get(spec.kind)
        if kind is None:
            raise CaptureError(
                f"input {node.name} is a {spec.kind.name.lower()}, which Quire cannot compile",
                allowed="tensors and plain Python constants",
                fix="pass tensors only",
            )
        target = next(leaves_left) if kind == "user" else str(spec.target)
        if not isinstance(node.meta.get("val"), torch.Tensor):
            constants[str(target)] = getattr(spec.arg, "value", None)
            continue
        inputs.append(Input(node, kind, target))  # type: ignore[arg-type]
    clean(graph, (i.node for i in inputs if training and i.kind == "parameter"))
    infos, sizes, ops = tables(graph)
    # Values written into inputs come first among the graph's outputs.
    returned = next(n for n in graph.nodes if n.op == "output").args[0]
    named = {str(n.target): n for n in placeholders}
    written = {named[name]: node for name, node in zip(changed, returned, strict=False)}
    state = {**exported.state_dict, **exported.constants}
    leaves = pytree.tree_leaves(returned)[len(changed) :]
    users = [i.node for i in inputs if i.kind == "user"]
    return Program(
        graph=graph,
        inputs=tuple(inputs),
        outputs=tuple(leaves),
        infos=infos,
        sizes=sizes,
        ops=ops,
        symbols=find_symbols(graph, exported.range_constraints, users),
        state={i.target: state[i.target] for i in inputs if i.kind != "user"},
        in_spec=in_spec,
        out_spec=cast(pytree.TreeSpec, exported.call_spec.out_spec),
        constants=constants,
        paths=paths,
        writes=written,
    )


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def line_in_model(error: BaseException, model: nn.Module) -> str:
    """The innermost frame that lies neither in torch nor in Quire."""
    text = str(error)
    hits = re.findall(r'File "([^"]+)", line (\d+), in [^\n]+\n\s*([^\n]*)', text)
    frames = [(f.filename, f.lineno, f.line) for f in traceback.extract_tb(error.__traceback__)]
    frames += [(file, int(line), code) for file, line, code in hits]
    inner = [f for f in frames if not _NOT_THE_USERS.search(f[0])]
    if not inner:
        return type(model).__name__
    file, line, code = inner[-1]
    return f"{file}:{line}  `{(code or '').strip()}`"


def advice(text: str) -> str:
    if "data-dependent" in text or "GuardOnDataDependent" in text:
        return "a branch or size depends on tensor values: use torch.where, or make it a constant"
    if "dynamic_shapes" in text or "Constraints violated" in text:
        return "give dynamic_shapes the ranges named above, or make that dim static"
    return (
        "see that model(*args, **kwargs) runs; torch.export.export(model, args, kwargs) then "
        "reproduces the error"
    )
