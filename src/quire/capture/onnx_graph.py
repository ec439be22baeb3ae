"""ONNX file → torch.export program.

The graph runs on torch, node by node, under `torch.export`. Values that are known when the file
is read (initializers, constants, shapes) stay numpy arrays, whose elements may be symbolic sizes,
and whatever depends on such values alone is worked out then and there. Ops without a rule of
their own run by the function that the ONNX standard defines them by, where it gives one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn
from torch.export import Dim, ExportedProgram

import quire.capture.onnx_layers
import quire.capture.onnx_ops
import quire.capture.onnx_views  # noqa: F401  (fills the table of rules)
from quire.capture.export import export
from quire.capture.onnx_table import DTYPES, RULES, SYMBOLIC, Node, NotStaticError, to_torch
from quire.errors import CaptureError

_log = logging.getLogger(__name__)

REFUSALS = (IndexError, TypeError, ValueError, RuntimeError)
"""What ONNX's reference raises for a node that it does not take. Such a node is not lost: it goes
to our own rule, or to a CaptureError that names it."""

FOLDED = 1 << 16
"""Elements up to which known operands are folded: larger ones are weights."""


def import_onnx(file: Path | onnx.ModelProto, dims: Mapping[str, int] | None = None) -> Any:
    """The program of an ONNX model. `dims` gives the largest size of each dim that the file names
    without a size; the smallest is 1.

    Raises CaptureError, naming the node, for ops, dtypes and shapes that cannot be imported.
    """
    model = onnx.load(file) if isinstance(file, Path) else file
    where = str(file) if isinstance(file, Path) else "the model"
    module = OnnxModule(model)
    args, dynamic = module.example(dict(dims or {}), where)
    return _exported(module, args, dynamic)


def _exported(module: OnnxModule, args: Sequence[Any], dynamic: Any) -> ExportedProgram:
    try:
        return export(module, args, None, (dynamic,) if args else None)
    except CaptureError as error:
        if isinstance(error.__cause__, CaptureError):
            raise error.__cause__ from None
        raise


@attrs.frozen
class _Step:
    node: Node
    proto: onnx.NodeProto
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class OnnxModule(nn.Module):
    """An ONNX graph as a module; `forward` takes the graph's inputs in order."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        self._opsets = {o.domain or "": o.version for o in model.opset_import}
        self._functions = {(f.domain or "", f.name): f for f in model.functions}
        graph = model.graph
        self._held: dict[str, np.ndarray] = {}
        self._buffer_of: dict[str, str] = {}
        for k, tensor in enumerate(graph.initializer):
            array = numpy_helper.to_array(tensor)
            self._held[tensor.name] = array
            if tensor.data_type in DTYPES:
                self._buffer_of[tensor.name] = f"weight_{k}"
                self.register_buffer(f"weight_{k}", to_torch(array))
        self._inputs = [i for i in graph.input if i.name not in self._held]
        self._steps = self._read(graph.node, self._opsets)
        self._outputs = [o.name for o in graph.output]

    def _read(self, nodes: Any, opsets: Mapping[str, int]) -> list[_Step]:
        steps = []
        for proto in nodes:
            domain = "" if proto.domain == "ai.onnx" else proto.domain
            values = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}
            node = Node(
                proto.op_type, domain, opsets.get(domain, 1), proto.name, values, len(proto.output)
            )
            steps.append(_Step(node, proto, tuple(proto.input), tuple(proto.output)))
        return steps

    def example(self, most: dict[str, int], where: str) -> tuple[tuple[Any, ...], Any]:
        """Inputs to trace with, and which of their dims are free."""
        args, dynamic = [], []
        dims = {name: Dim(f"d{k}", min=1, max=n) for k, (name, n) in enumerate(most.items())}
        for item in self._inputs:
            kind = item.type.tensor_type
            if not item.type.HasField("tensor_type") or kind.elem_type not in DTYPES:
                raise CaptureError(f"input {item.name} is no tensor that torch has", where=where)
            shape: list[int] = []
            free: dict[int, Any] = {}
            for d, size in enumerate(kind.shape.dim):
                if size.HasField("dim_value"):
                    shape.append(size.dim_value)
                    continue
                name = size.dim_param
                if name not in most:
                    raise CaptureError(
                        f"dim {d} of input {item.name} has no size{f' ({name})' if name else ''}",
                        where=where,
                        allowed="dims with a size, or with a largest size given",
                        fix=f"quire.fuse(file, dims={{{name!r}: …}})",
                    )
                shape.append(min(most[name], 3 + len(free)))
                if most[name] > 1:
                    free[d] = dims[name]
            dtype = DTYPES[kind.elem_type]
            args.append(torch.zeros(shape, dtype=dtype))
            dynamic.append(free or None)
        return tuple(args), tuple(dynamic)

    def forward(self, *args: torch.Tensor) -> Any:
        values: dict[str, Any] = dict(self._held)
        values.update({i.name: a for i, a in zip(self._inputs, args, strict=True)})
        self._run(self._steps, values)
        found = tuple(self._tensor(values[name], name) for name in self._outputs)
        # An output that is an input or a constant is a copy of it.
        fresh = tuple(f.clone() if any(f is a for a in args) else f for f in found)
        return fresh[0] if len(fresh) == 1 else fresh

    def _tensor(self, value: Any, name: str = "") -> Any:
        if not isinstance(value, np.ndarray):
            return value
        if name in self._buffer_of and value is self._held.get(name):
            return getattr(self, self._buffer_of[name])
        if value.dtype == object:
            whole = all(not isinstance(x, float) for x in value.flat)
            dtype = torch.int64 if whole else torch.float32
            parts = [torch.full((), x, dtype=dtype) for x in value.flat]
            return (torch.stack(parts) if parts else torch.zeros(0)).reshape(value.shape)
        # Not by way of a tensor: under torch.export that one would be traced.
        dtype = DTYPES[onnx.helper.np_dtype_to_tensor_dtype(value.dtype)]
        plain = value.astype(np.float64) if dtype.is_floating_point else value
        return torch.tensor(plain.tolist(), dtype=dtype).reshape(value.shape)

    def _run(self, steps: Sequence[_Step], values: dict[str, Any]) -> None:
        for step in steps:
            given = [values[name] if name else None for name in step.inputs]
            where = f"node {step.node.name or step.outputs[0]} ({step.node.op})"
            try:
                if step.node.op == "If" and isinstance(given[0], np.ndarray):
                    results = self._branch(step, bool(given[0]), values)
                else:
                    results = self._result(step, given)
            except NotStaticError as error:
                raise CaptureError(
                    f"{step.node.op} needs the values of {step.inputs[error.position]!r}",
                    where=where,
                    allowed="values that the file holds, or that follow from shapes",
                ) from error
            except CaptureError as error:
                if error.where:
                    raise
                raise CaptureError(error.found, where=where, allowed=error.allowed) from error
            except Exception as error:
                raise CaptureError(
                    f"{step.node.op} cannot be traced: {error}",
                    where=where,
                    allowed="the ops and attributes in docs/coverage-onnx.md",
                ) from error
            if not isinstance(results, tuple | list):
                results = (results,)
            values.update({name: r for name, r in zip(step.outputs, results, strict=False) if name})

    def _result(self, step: _Step, given: list[Any]) -> Any:
        node = step.node
        known = [isinstance(g, np.ndarray) for g in given if g is not None]
        small = sum(g.size for g in given if isinstance(g, np.ndarray)) <= FOLDED
        if all(known) and small and not node.has_graph:
            symbolic = any(g is not None and g.dtype == object for g in given)
            if node.op in SYMBOLIC and (symbolic or node.op == "ConstantOfShape"):
                return SYMBOLIC[node.op](node, *given)
            if not symbolic and (node.domain, node.op) not in self._functions:
                try:
                    return _fold(step, given, node.version)
                except REFUSALS as error:  # our own rule may take it, or says why not
                    _log.debug("%s is not folded: %s", node.op, error)
        function = RULES.get(node.op) if node.domain == "" else None
        if function is not None:
            return function(node, given, self._tensor_of(step))
        return self._by_function(step, given)

    def _branch(self, step: _Step, condition: bool, values: dict[str, Any]) -> Any:
        """The side of an If that is known to be taken."""
        graph = step.node.attributes["then_branch" if condition else "else_branch"]
        inner = values | {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self._run(self._read(graph.node, self._opsets), inner)
        return tuple(inner[o.name] for o in graph.output)

    def _tensor_of(self, step: _Step) -> Any:
        names = dict(enumerate(step.inputs))
        return lambda value, position: self._tensor(value, names.get(position, ""))

    def _by_function(self, step: _Step, given: list[Any]) -> Any:
        """By the body that the model or the standard defines the op by."""
        node = step.node
        body = self._functions.get((node.domain, node.op)) or _standard_body(step, given)
        if body is None:
            raise CaptureError(
                f"no rule for the ONNX op {node.domain + '.' if node.domain else ''}{node.op}",
                where=f"node {node.name or step.outputs[0]}",
                allowed="the ops in docs/coverage-onnx.md",
                fix="add a rule in quire/capture/onnx_ops.py",
            )
        values: dict[str, Any] = dict(zip(body.input, given, strict=False))
        values |= {name: None for name in body.input[len(given) :]}
        own = {a.name: a for a in step.proto.attribute}
        if (node.domain, node.op) not in self._functions:
            schema = onnx.defs.get_schema(node.op, node.version, node.domain)
            usual = {n: a.default_value for n, a in schema.attributes.items()}
            own = {n: a for n, a in usual.items() if a.name} | own
        own = {a.name: a for a in body.attribute_proto} | own
        nodes = [_with_attributes(n, own) for n in body.node]
        opsets = {o.domain: o.version for o in body.opset_import} or self._opsets
        self._run(self._read(nodes, opsets), values)
        return tuple(values.get(name) for name in body.output)


def _fold(step: _Step, given: list[Any], version: int) -> Any:
    """A node over known values, by ONNX's own reference."""
    present = [(n, g) for n, g in zip(step.inputs, given, strict=True) if g is not None]
    infos = [
        onnx.helper.make_tensor_value_info(
            n, onnx.helper.np_dtype_to_tensor_dtype(g.dtype), g.shape
        )
        for n, g in dict(present).items()
    ]
    outs = [onnx.ValueInfoProto(name=o) for o in step.outputs if o]
    graph = onnx.helper.make_graph([step.proto], "fold", infos, outs)
    opset = [onnx.helper.make_opsetid(step.node.domain, version)]
    model = onnx.helper.make_model(graph, opset_imports=opset)
    results = iter(ReferenceEvaluator(model).run(None, dict(present)))
    return tuple(np.asarray(next(results)) if o else None for o in step.outputs)


def _standard_body(step: _Step, given: list[Any]) -> onnx.FunctionProto | None:
    node = step.node
    try:
        schema = onnx.defs.get_schema(node.op, node.version, node.domain)
    except onnx.defs.SchemaError:
        return None
    if schema.has_function:
        return schema.function_body
    if not schema.has_context_dependent_function:
        return None
    kinds = {v: k for k, v in DTYPES.items()}
    types = []
    for g in given:
        kind = onnx.TypeProto()
        if g is not None:
            number = (
                onnx.helper.np_dtype_to_tensor_dtype(g.dtype)
                if isinstance(g, np.ndarray)
                else kinds[g.dtype]
            )
            kind = onnx.helper.make_tensor_type_proto(number, [int(s) for s in g.shape])
        types.append(kind.SerializeToString())
    body = onnx.FunctionProto()
    body.ParseFromString(
        schema.get_context_dependent_function(step.proto.SerializeToString(), types)
    )
    return body


def _with_attributes(
    node: onnx.NodeProto, own: Mapping[str, onnx.AttributeProto]
) -> onnx.NodeProto:
    """A node of a function's body, with the attributes that refer to the caller's filled in."""
    made = onnx.NodeProto()
    made.CopyFrom(node)
    del made.attribute[:]
    for a in node.attribute:
        if not a.ref_attr_name:
            made.attribute.append(a)
        elif a.ref_attr_name in own:
            filled = onnx.AttributeProto()
            filled.CopyFrom(own[a.ref_attr_name])
            filled.name = a.name
            made.attribute.append(filled)
    return made


__all__ = ["OnnxModule", "import_onnx"]
