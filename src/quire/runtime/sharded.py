"""The sharded module: the user's module tree, its forwards replaced by one rank's.

Every submodule gets a subclass of its own class whose `forward` is generated Python; parameters,
buffers, state dict keys and `isinstance` are the original's. Modules are copied, parameters are
shared with the model given.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import linecache
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.distributed.device_mesh import DeviceMesh
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from quire.apply.shard import Lines
from quire.apply.shard_code import Function
from quire.capture.program import Program
from quire.errors import InputError
from quire.plan.shard.plan import Placed, ShardPlan
from quire.runtime import collectives, sharded_attention

BUCKET = 32 << 20
"""Bytes of gradients averaged at once."""


@attrs.frozen(eq=False)
class Built:
    """One captured length: its plan, and what its functions need."""

    program: Program
    plan: ShardPlan
    lines: Lines
    functions: tuple[Function, ...]
    certificate: Any = None
    """What is proved of the functions: a `quire.Certificate`."""


_hybrids: dict[tuple[str, int], tuple[str, str]] = {}

Build = Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any]], Built]


class Runner:
    """What the modules of one sharded tree share."""

    def __init__(
        self, original: nn.Module, mesh: DeviceMesh, build: Build, parts: bool = False
    ) -> None:
        self.original, self.mesh, self.build = original, mesh, build
        self.parts, self.group = parts, mesh.get_group()
        self.built: dict[Any, Built] = {}
        self.tables: dict[str, dict[tuple[int, int], Any]] = {}
        self.serial: dict[int, int] = {}
        self.keeps: list[dict[str, str]] = []
        self.current = 0
        self.root: nn.Module = original
        self.scope: dict[str, Any] = {
            "aten": torch.ops.aten,
            "torch": torch,
            "device": torch.device,
            "ranks": collectives,
            "attention": sharded_attention,
            "GROUP": self.group.group_name,
            "GROUPS": {},
        }

    def compile(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Built:
        """Capture and plan for one call's shapes, in the mode (training or not) of the root."""
        mode = self.original.training
        self.original.train(self.root.training)
        try:
            built = self.build(self.original, args, kwargs)
        finally:
            self.original.train(mode)
        self.agree(built)
        self.add(self.key(args, kwargs), built)
        return built

    def agree(self, built: Built) -> None:
        """Ranks that run different texts would wait for one another for ever. Raises InputError."""
        text = "\n".join(f.source for f in built.functions)
        mine = int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)
        both = torch.tensor([mine, -mine], device=self.mesh.device_type)
        group, what = self.group.group_name, "the comparison of the ranks' plans"
        if not bool((collectives.all_reduce(both, "max", group, what) == both).all()):
            raise InputError(
                "the ranks have made different plans",
                where=f"rank {collectives.rank_of(group)}",
                allowed="the same model, batch shapes, memory and links on every rank",
                fix="name the links: links= a preset, or one file that all ranks read",
            )

    def key(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return _key(self.root, args, kwargs)

    def add(self, key: Any, built: Built) -> None:
        number = len(self.built)
        self.built[key] = built
        self.serial[id(built)] = number
        regions = built.plan.memory.regions if built.plan.memory is not None else ()
        self.keeps.append({region.module: how for region, how in regions})
        for item in built.program.inputs:
            if item.kind == "constant":
                name = "quire_constant_" + item.target.replace(".", "_")
                self.root.register_buffer(name, built.program.state[item.target], persistent=False)
        for choice in built.plan.chosen:
            if choice.way == "hybrid":
                self._groups(choice.ring_of)
        for function in built.functions:
            code = _compiled(function, number, self.scope)
            self.tables.setdefault(function.module, {})[number, function.call] = code

    def _groups(self, ring_of: int) -> None:
        """The groups of a hybrid, made once for a mesh: making one is a collective itself."""
        key = (self.group.group_name, ring_of)
        if key not in _hybrids:
            shape = (ring_of, self.mesh.size() // ring_of)
            sub = self.mesh._unflatten(0, shape, ("ring", "ulysses"))
            _hybrids[key] = (
                sub["ring"].get_group().group_name,
                sub["ulysses"].get_group().group_name,
            )
        names = self.scope["GROUPS"]
        names["ring", ring_of], names["ulysses", ring_of] = _hybrids[key]


def _compiled(function: Function, number: int, scope: dict[str, Any]) -> Any:
    name = f"<quire {function.module or 'root'} length {number} call {function.call}>"
    linecache.cache[name] = (len(function.source), None, function.source.splitlines(True), name)
    found: dict[str, Any] = {}
    exec(compile(function.source, name, "exec"), scope, found)
    return found["forward"]


class _Part:
    """Mixed into every submodule that the graph calls."""

    def forward(self, *values: Any, quire_call: int = 0) -> Any:
        runner: Runner = self._quire  # type: ignore[attr-defined]
        path: str = self._quire_path  # type: ignore[attr-defined]
        function = runner.tables[path][runner.current, quire_call]
        how = runner.keeps[runner.current].get(path, "keep")
        if how == "keep" or not torch.is_grad_enabled():
            return function(self, *values)
        with contextlib.ExitStack() as stack:
            if how != "recompute":
                pinned = runner.mesh.device_type == "cuda"
                stack.enter_context(save_on_cpu(pin_memory=pinned))
            if how == "offload":
                return function(self, *values)
            return checkpoint(function, self, *values, use_reentrant=False)


class ShardedModule:
    """Mixed into the root: takes the whole batch, or this rank's part of it."""

    _quire: Runner

    @property
    def plan(self) -> ShardPlan:
        """The plan of the length last run, or of the example."""
        return self._now.plan

    @property
    def certificate(self) -> Any:
        """What is proved of the length last run, or of the example: a `quire.Certificate`; None
        with `verify=False`."""
        return self._now.certificate

    @property
    def _now(self) -> Built:
        runner = self._quire
        return list(runner.built.values())[runner.current]

    def source(self, module: str = "") -> str:
        """The generated Python of a submodule, for the length last run."""
        return "\n".join(f.source for f in self._now.functions if f.module == module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        runner = self._quire
        built, values = _prepare(runner, args, kwargs)
        runner.current = runner.serial[id(built)]
        results = runner.tables[""][runner.current, 0](self, *values)
        return pytree.tree_unflatten(list(results), built.program.out_spec)


def shard_tree(
    model: nn.Module,
    mesh: DeviceMesh,
    build: Build,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    reduce_gradients: bool = True,
    parts: bool = False,
) -> nn.Module:
    """`model`'s tree with sharded forwards, planned for the example `args` and `kwargs`. It takes
    whole batches, or (`parts`) each rank's rows of one like the example."""
    runner = Runner(model, mesh, build, parts)
    root = _copied(model, {}, runner, "")
    runner.root = root
    runner.compile(args, _given(kwargs))
    if reduce_gradients:
        _Averager(root, runner.group)
    return root


def _copied(module: nn.Module, done: dict[int, nn.Module], runner: Runner, path: str) -> nn.Module:
    if id(module) in done:
        return done[id(module)]
    new = done[id(module)] = copy.copy(module)
    own = dict(module.__dict__)
    for name in ("_parameters", "_buffers"):
        own[name] = type(own[name])(own[name])
    new.__dict__.update(own)
    children = {
        name: None if child is None else _copied(child, done, runner, f"{path}.{name}".strip("."))
        for name, child in module._modules.items()
    }
    new.__dict__["_modules"] = type(module._modules)(children)
    new.__dict__["_quire"], new.__dict__["_quire_path"] = runner, path
    kind = type(module)
    mixin = _Part if path else ShardedModule
    if path and isinstance(module, nn.ModuleList | nn.ModuleDict | nn.ParameterList):
        return new
    body: dict[str, Any] = {"__module__": kind.__module__}
    if not path:
        body["forward"] = _signed(kind)
    new.__class__ = type(kind.__name__, (mixin, kind), body)
    return new


def _signed(kind: type[nn.Module]) -> Any:
    """The root's forward under the signature of the user's: trainers read it."""

    @functools.wraps(kind.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return ShardedModule.forward(self, *args, **kwargs)

    return forward


def _key(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    leaves, spec = pytree.tree_flatten((args, dict(sorted(kwargs.items()))))
    shown = tuple((tuple(x.shape), x.dtype) if isinstance(x, Tensor) else repr(x) for x in leaves)
    return shown, str(spec), model.training


def _prepare(
    runner: Runner, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Built, list[Tensor]]:
    kwargs = _given(kwargs)
    if runner.parts:
        args, kwargs = _whole(runner, args, kwargs)
    built = runner.built.get(runner.key(args, kwargs)) or runner.compile(args, kwargs)
    spec = built.program.in_spec
    names = _keywords(spec)
    leaves = pytree.tree_leaves((args, {n: kwargs[n] for n in names if n in kwargs}))
    found = dict(zip(built.program.paths, leaves, strict=True))
    return built, [found[i.target] for i in built.program.users_inputs()]


def _given(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in kwargs.items() if v is not None}


def _keywords(spec: pytree.TreeSpec) -> list[str]:
    return list(pytree.tree_unflatten(list(range(spec.num_leaves)), spec)[1])


def _whole(
    runner: Runner, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """The example's batch brought together from the ranks' parts of it. Raises InputError."""
    built = next(iter(runner.built.values()))
    program, plan = built.program, built.plan
    names = _keywords(program.in_spec)
    leaves, spec = pytree.tree_flatten((args, {n: kwargs[n] for n in names if n in kwargs}))
    if set(names) != set(kwargs) or len(leaves) != len(program.paths):
        raise InputError(
            f"inputs {', '.join(kwargs)}", allowed=f"the example's: {', '.join(program.paths)}"
        )
    infos = {i.target: program.info(i.node) for i in program.users_inputs()}
    sizes = {site.q_size for site in plan.sites} | {site.k_size for site in plan.sites}
    group = runner.group.group_name
    made = []
    for path, x in zip(program.paths, leaves, strict=True):
        if not isinstance(x, Tensor) or tuple(x.shape) == tuple(infos[path].shape):
            made.append(x)
            continue
        at = _part_of(x, infos[path].shape, plan, sizes, collectives.rank_of(group))
        if at is None:
            raise InputError(
                f"{path} has the shape {tuple(x.shape)}",
                where=f"rank {collectives.rank_of(group)}",
                allowed=f"this rank's rows of the example's {tuple(infos[path].shape)}: see "
                "model.plan.layout(size).runs(rank)",
                fix='give these, or whole batches and quire.shard(…, inputs="whole")',
            )
        rows = plan.layout(at.size).local
        missing = x.new_zeros([rows - n if d == at.dim else n for d, n in enumerate(x.shape)])
        x = torch.cat([x, missing], at.dim)
        made.append(collectives.gather_rows(x, at.dim, 1, at.size, plan.ranks, plan.order, group))
    return pytree.tree_unflatten(made, spec)


def _part_of(x: Tensor, shape: Any, plan: ShardPlan, sizes: set[int], rank: int) -> Placed | None:
    """The dim of `x` that holds this rank's rows, and how many all ranks have."""
    if x.dim() != len(shape):
        return None
    other = [d for d, (a, b) in enumerate(zip(x.shape, shape, strict=True)) if a != b]
    if len(other) != 1 or shape[other[0]] not in sizes:
        return None
    size = int(shape[other[0]])
    rows = sum(n for _, _, n in plan.layout(size).runs(rank))
    return Placed(other[0], size) if x.shape[other[0]] == rows else None


class _Averager:
    """After backward, averages the gradients over the ranks, in the order of the parameters."""

    def __init__(self, root: nn.Module, group: dist.ProcessGroup) -> None:
        self.group = group
        self.order = {p: i for i, p in enumerate(root.parameters())}
        self.ready: list[nn.Parameter] = []
        for parameter in self.order:
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._note)

    def _note(self, parameter: nn.Parameter) -> None:
        if not self.ready:
            engine: Any = torch.autograd.Variable._execution_engine
            engine.queue_callback(self._finish)
        self.ready.append(parameter)

    def _finish(self) -> None:
        ready, self.ready = sorted(self.ready, key=self.order.__getitem__), []
        bucket: list[Tensor] = []
        for parameter in ready:
            grad = parameter.grad
            assert grad is not None
            if bucket and (grad.dtype != bucket[0].dtype or _size(bucket) >= BUCKET):
                self._average(bucket)
                bucket = []
            bucket.append(grad)
        if bucket:
            self._average(bucket)

    def _average(self, grads: list[Tensor]) -> None:
        flat = torch.cat([g.reshape(-1) for g in grads])
        flat = collectives.all_reduce(
            flat, "sum", self.group.group_name, "the all-reduce of parameter gradients"
        )
        flat /= self.group.size()
        for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(part.view_as(grad))


def _size(tensors: list[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
