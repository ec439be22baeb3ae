"""The sharded module: the user's module tree, its forwards replaced by one rank's.

Every submodule gets a subclass of its own class whose `forward` is generated Python; parameters,
buffers, state dict keys and `isinstance` are the original's. Modules are copied, parameters are
shared with the model given.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.distributed.device_mesh import DeviceMesh
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from quire.errors import InputError
from quire.plan.shard.plan import Placed, ShardPlan
from quire.runtime import collectives
from quire.runtime.programs import Build, BuildFree, Built, Runner

BUCKET = 32 << 20
"""Bytes of gradients averaged at once."""


class _Part:
    """Mixed into every submodule that the graph calls."""

    def forward(self, *values: Any, quire_call: int = 0, quire_program: int = 0) -> Any:
        runner: Runner = self._quire  # type: ignore[attr-defined]
        path: str = self._quire_path  # type: ignore[attr-defined]
        function = runner.function(path, quire_program, quire_call)
        how = runner.keeps[quire_program].get(path, "keep")
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
        """The plan of the length last run, or of the example: that of the longest length which the
        same program takes."""
        return self._now.plan

    @property
    def certificate(self) -> Any:
        """What is proved of the length last run, or of the example: a `quire.Certificate`; None
        with `verify=False`. Of a length that is not the first of its program it is worked out
        here."""
        return self._quire.certificate()

    @property
    def _now(self) -> Built:
        now = self._quire.now
        assert now is not None
        return now

    def source(self, module: str = "") -> str:
        """The generated Python of a submodule, for the length last run."""
        return "\n".join(f.source for f in self._now.functions if f.module == module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        runner = self._quire
        built, values = _prepare(runner, args, kwargs)
        results = runner.function("", runner.current[0], 0)(self, *values)
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
    build_free: BuildFree | None = None,
    most: int = 32,
) -> nn.Module:
    """`model`'s tree with sharded forwards, planned for the example `args` and `kwargs`. It takes
    whole batches, or (`parts`) each rank's rows of one like the example. Batches of other lengths
    get programs by `build_free`, or one each by `build`; `most` programs are kept."""
    runner = Runner(model, mesh, build, build_free, parts=parts, most=most)
    root = _copied(model, {}, runner, "")
    runner.root = root
    runner.find(args, _given(kwargs))
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


def _prepare(
    runner: Runner, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Built, list[Any]]:
    """The call's program, and what its root's function is given."""
    kwargs = _given(kwargs)
    if runner.parts:
        args, kwargs = _whole(runner, args, kwargs)
    number, lengths = runner.find(args, kwargs)
    built = runner.kept[number]
    names = _keywords(built.program.in_spec)
    leaves = pytree.tree_leaves((args, {n: kwargs[n] for n in names if n in kwargs}))
    found = dict(zip(built.program.paths, leaves, strict=True))
    return built, [*(found[i.target] for i in built.program.users_inputs()), *lengths]


def _given(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in kwargs.items() if v is not None}


def _keywords(spec: pytree.TreeSpec) -> list[str]:
    return list(pytree.tree_unflatten(list(range(spec.num_leaves)), spec)[1])


def _whole(
    runner: Runner, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """The example's batch brought together from the ranks' parts of it. Raises InputError."""
    built = runner.example
    assert built is not None
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
