"""The compiled module: emitted source, the model's own weights, and guards on its inputs."""

from __future__ import annotations

import itertools
import linecache
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from quire.capture.program import Program, leaf_paths
from quire.errors import InputError
from quire.plan.plan import Plan

Lengths = tuple[int, ...]
PartSizes = Callable[[Lengths], Mapping[str, int]]

_count = itertools.count()


class ChunkedModule(nn.Module):
    """A normal module that computes what `program` does, in the parts that `plan` says.

    Parameters and buffers keep their names and are the original's own tensors. It computes no
    gradients. `part_sizes` gives the part of each region for given values of the program's length
    symbols; it is asked once per combination of lengths.

    Raises InputError if the inputs' structure, dtypes or sizes are not those it was made for, and
    if its weights are to change their dtype: the code allocates what it was planned for.
    """

    def __init__(self, program: Program, plan: Plan, source: str, part_sizes: PartSizes) -> None:
        super().__init__()
        self.plan = plan
        self.source = source
        self._inputs = tuple((i.target, program.info(i.node)) for i in program.users_inputs())
        self._constants = dict(program.constants)
        self._symbols = program.symbols
        self._in_spec, self._out_spec = program.in_spec, program.out_spec
        self._places = tuple(i.node for i in program.inputs if i.kind == "user")
        self._leaf_paths = _leaf_paths(program)
        self._part_sizes = part_sizes
        self._parts: dict[Lengths, Mapping[str, int]] = {}
        self._weights: dict[str, tuple[nn.Module, str]] = {}
        for item in program.inputs:
            if item.kind != "user":
                tensor = program.state[item.target]
                self._weights[item.target] = _attach(self, item.target, tensor)
        self._forward = _load(source)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        tensors = self._check(args, kwargs)
        lengths = tuple(tensors[self._places.index(s.source)].shape[s.dim] for s in self._symbols)
        parts = self._parts.get(lengths)
        if parts is None:
            parts = self._parts[lengths] = self._part_sizes(lengths)
        weights = {name: getattr(owner, key) for name, (owner, key) in self._weights.items()}
        with torch.no_grad():
            results = self._forward(weights, parts, *tensors)
        return pytree.tree_unflatten(results, self._out_spec)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """Moves to other devices; refuses other dtypes, before anything has changed."""
        for name, (owner, key) in self._weights.items():
            weight = getattr(owner, key)
            dtype = fn(torch.empty(0, dtype=weight.dtype, device=weight.device)).dtype
            if dtype != weight.dtype:
                raise InputError(
                    f"{name} would become {dtype}",
                    where=name,
                    allowed=f"{weight.dtype}, which it was compiled for; any device",
                    fix=f"chunk the model in that dtype: quire.chunk(model.to({dtype}), …)",
                )
        return super()._apply(fn, recurse)

    def _check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
        """The tensors among the inputs, in the order of the emitted function's parameters."""
        keywords = self._in_spec.child(1).context
        if set(kwargs) == set(keywords):
            kwargs = {name: kwargs[name] for name in keywords}
        leaves, spec = pytree.tree_flatten((args, kwargs))
        if spec != self._in_spec:
            raise InputError(
                f"called with {_structure(args, kwargs)}{_amiss(args, kwargs, self._leaf_paths)}",
                allowed="the arguments it was compiled for: " + ", ".join(self._leaf_paths),
                fix="pass the same positional and keyword arguments as to quire.chunk",
            )
        tensors: list[torch.Tensor] = []
        infos = dict(self._inputs)
        sizes: dict[Any, int] = {}
        for path, leaf in zip(self._leaf_paths, leaves, strict=True):
            if path in infos:
                self._check_tensor(path, leaf, infos[path], sizes)
                tensors.append(leaf)
            elif isinstance(leaf, torch.Tensor) or leaf != self._constants.get(path):
                raise InputError(
                    f"{path} is {leaf!r}",
                    where=path,
                    allowed=f"{self._constants.get(path)!r}, the value at compile time",
                    fix="compile again with this value: quire.chunk(model, args, kwargs)",
                )
        return tensors

    def _check_tensor(self, path: str, leaf: Any, info: Any, sizes: dict[Any, int]) -> None:
        found = (
            f"a tensor of {leaf.dtype} {list(leaf.shape)}"
            if isinstance(leaf, torch.Tensor)
            else f"a {type(leaf).__name__}"
        )
        allowed = f"a tensor of {info.dtype} [{', '.join(map(str, info.shape))}]"
        good = (
            isinstance(leaf, torch.Tensor)
            and leaf.dtype == info.dtype
            and leaf.dim() == len(info.shape)
        )
        if good:
            for symbol in self._symbols:
                size = leaf.shape[symbol.dim] if symbol.dim < leaf.dim() else None
                if info.shape[symbol.dim : symbol.dim + 1] == (symbol.name,) and size is not None:
                    sizes.setdefault(symbol.name, int(size))
                    high = "" if symbol.hi is None else f" … {symbol.hi}"
                    allowed += f" with {symbol.name} in {symbol.lo}{high}"
                    in_range = symbol.lo <= size and (symbol.hi is None or size <= symbol.hi)
                    good = good and in_range
            for want, size in zip(info.shape, leaf.shape, strict=True):
                if not isinstance(want, int):
                    want = want.xreplace(sizes)
                good = good and want == size
        if not good:
            raise InputError(
                f"{path} is {found}",
                where=path,
                allowed=allowed,
                fix="compile for this input: quire.chunk(model, args, kwargs), with "
                "dynamic_shapes for dims that vary",
            )

    def extra_repr(self) -> str:
        return f"{len(self.plan.regions)} regions, peak {self.plan.peak_bytes / 2**20:.1f} MiB"


def _leaf_paths(program: Program) -> tuple[str, ...]:
    """A path for every leaf of `(args, kwargs)`: tensors and constants, in order of the spec."""
    order = [*(i.target for i in program.users_inputs()), *program.constants]
    ranks = {path: program.paths.index(path) for path in order}
    return tuple(sorted(order, key=ranks.__getitem__))


def _structure(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    words = [type(a).__name__ for a in args] + [
        f"{k}={type(v).__name__}" for k, v in kwargs.items()
    ]
    return f"({', '.join(words)})"


def _amiss(args: tuple[Any, ...], kwargs: dict[str, Any], wanted: tuple[str, ...]) -> str:
    """Which arguments are missing and which are not known, in words."""
    try:
        given = leaf_paths((args, kwargs))
    except ValueError:
        return ""
    words = []
    for verdict, ours, others in (("missing", wanted, given), ("not taken", given, wanted)):
        heads = {_head(path) for path in others}
        # An argument that is lacking as a whole is named as a whole.
        lacking = [p if _head(p) in heads else _head(p) for p in ours if p not in others]
        if lacking:
            words.append(f"{verdict}: {', '.join(dict.fromkeys(lacking))}")
    return f"; {'; '.join(words)}" if words else ""


def _head(path: str) -> str:
    """`mask` of `mask['a'][0]`, `args[1]` of `args[1]['k']`."""
    found = re.match(r"args\[\d+\]|[^\[.]+", path)
    return found[0] if found else path


def _attach(root: nn.Module, target: str, tensor: torch.Tensor) -> tuple[nn.Module, str]:
    """Register `tensor` under its dotted name, on plain modules made as needed."""
    *path, name = target.split(".")
    owner = root
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    if isinstance(tensor, nn.Parameter):
        owner.register_parameter(name, tensor)
    else:
        owner.register_buffer(name, tensor)
    return owner, name


def _load(source: str) -> Callable[..., list[Any]]:
    """The emitted `forward`, its lines known to tracebacks and debuggers."""
    name = f"<quire {next(_count)}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    scope: dict[str, Any] = {}
    exec(compile(source, name, "exec"), scope)
    return scope["forward"]
