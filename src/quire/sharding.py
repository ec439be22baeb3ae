"""`quire.shard`: capture → sites → order and ways → places → lines → module tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import fx, nn
from torch.distributed.device_mesh import DeviceMesh

import quire.flow.rules  # noqa: F401  (fills the table of rules)
from quire.apply.shard import shard_lines
from quire.apply.shard_code import functions
from quire.budget import Memory, parse_budget
from quire.capture.export import from_exported
from quire.capture.losses import taken_apart
from quire.capture.program import Program
from quire.capture.training import export_training
from quire.cost.collectives import TOPOLOGIES, Topology
from quire.cost.links import mesh_file, read_mesh
from quire.errors import CaptureError, InputError, QuireError
from quire.flow.registry import flow_of, rules
from quire.plan.layout import Layout
from quire.plan.shard.choose import choose
from quire.plan.shard.cost import flops_of
from quire.plan.shard.flow import Placer, Spreading
from quire.plan.shard.head import find_head, only_losses
from quire.plan.shard.memory import Memory as DeviceMemory
from quire.plan.shard.memory import plan_memory
from quire.plan.shard.plan import Candidate, ShardPlan, Site, Way
from quire.plan.shard.sites import find_sites
from quire.plan.shard.timing import StepTime, step_time
from quire.runtime.programs import Built, constant_name
from quire.runtime.sharded import shard_tree
from quire.shard_lengths import FreeLengths, Making, over
from quire.shard_proof import certified, hooks, task
from quire.verify.certificate import Certificate
from quire.verify.shard.prove import prove_task
from quire.verify.shard.task import Range


def shard(
    model: nn.Module,
    example: Mapping[str, Any] | Sequence[Any],
    *,
    mesh: DeviceMesh,
    memory: Memory = None,
    links: str | Topology | None = None,
    ways: Sequence[Way] | None = None,
    inputs: str = "whole",
    outputs: str = "part",
    reduce_gradients: bool = True,
    verify: bool = True,
    allow_unknown: bool = True,
    programs: int = 32,
) -> nn.Module:
    """`model` with its sequence spread over the one dim of `mesh`, forward and backward.

    `example` is a batch at full length: keyword inputs, or a sequence of positional ones. The
    result takes whole batches, of any length, or with `inputs="part"` this rank's rows of a batch
    like the example, by `model.plan.layout(size).runs(rank)`. Parameters are shared with `model`.
    Losses are whole on every rank; other outputs hold this rank's rows (`outputs="part"`), all
    (`"whole"`), or are None (`"loss"`: then scores need not be there all at once). Parameter
    gradients are averaged over the mesh dim after backward, unless `reduce_gradients` is False:
    then leave that to DDP or FSDP2 over data × sequence ranks.

    `memory` is a budget per device for a training step ("70GiB", bytes); layers are recomputed
    or offloaded where it asks for that.

    `links` is a name of `quire.cost.collectives.TOPOLOGIES` or a file that `quire mesh` wrote;
    without it, what `quire mesh` measured of such a mesh, if it did. `ways` restricts the planner
    to some of "ulysses", "ring", "gathered", "hybrid".

    With `verify` the text that ranks run is proved to give the model's outputs and gradients, at
    the first length of each program and at any other when `certificate` is asked for it; that says
    so, or what is not shown.

    Lengths other than the example's share a program for each quarter of an octave, in which the
    length is data; the `programs` used last are kept.

    Raises CaptureError (the model cannot be captured, or has no attention to shard), InputError,
    RefutedError (a run differs), UnprovedError (not shown, unless `allow_unknown`).
    """
    if mesh.ndim != 1:
        raise InputError(
            f"the mesh has {mesh.ndim} dims",
            allowed="one dim, the sequence's",
            fix='give the part of it: mesh["sp"]',
        )
    if outputs not in ("part", "whole", "loss"):
        raise InputError(f"outputs={outputs!r}", allowed='"part", "whole" or "loss"')
    if inputs not in ("whole", "part"):
        raise InputError(f"inputs={inputs!r}", allowed='"whole" or "part"')
    if programs < 1:
        raise InputError(f"programs={programs}", allowed="1 or more")
    args, kwargs = ((), dict(example)) if isinstance(example, Mapping) else (tuple(example), {})
    topology = topology_of(links, mesh.device_type, mesh.size())
    budget = device_budget(memory)

    whole = outputs == "whole"
    making = _making(mesh.size(), topology, ways, budget, outputs)

    def prove(
        model: nn.Module, made: Built, lengths: tuple[int, ...] = (), ranges: Sequence[Range] = ()
    ) -> Certificate:
        found = prove_built(
            model,
            made,
            whole_outputs=whole,
            reduce_gradients=reduce_gradients,
            lengths=lengths,
            ranges=ranges,
            refute=not ranges,
        )
        return found if ranges else certified(found, allow_unknown)

    def build(
        model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], number: int
    ) -> Built:
        program = making.capture(model, args, kwargs)
        made = making.write(model, program, making.plan(program), number)
        return attrs.evolve(made, certificate=prove(model, made)) if verify else made

    return shard_tree(
        model,
        mesh,
        build,
        args,
        kwargs,
        reduce_gradients=reduce_gradients,
        parts=inputs == "part",
        build_free=FreeLengths(attrs.evolve(making, prove=prove if verify else None), programs),
        most=programs,
    )


def prove_shard(
    model: nn.Module,
    example: Mapping[str, Any] | Sequence[Any],
    *,
    ranks: int,
    memory: Memory = None,
    links: str | Topology = "h100",
    ways: Sequence[Way] | None = None,
    outputs: str = "part",
    reduce_gradients: bool = True,
    exact: bool = False,
    lengths: tuple[int, int] | None = None,
) -> Certificate:
    """What `quire.shard` would carry on a mesh of `ranks` ranks, without ranks or devices: the
    model may be on the meta device. With `exact` a training step of all ranks is run in a finite
    field as well, if the model is small.

    With `lengths`, a least and a largest in tokens, for one program that takes all of these, as a
    bucket of `quire.shard` does: the sizes of the example that are as long as an attention's
    sequence are free. It is planned for the largest.

    Raises CaptureError, InputError (also where `lengths` begin before every rank has rows of each
    of its blocks), BudgetError.
    """
    args, kwargs = ((), dict(example)) if isinstance(example, Mapping) else (tuple(example), {})
    budget = device_budget(memory)
    making = _making(ranks, topology_of(links, "meta"), ways, budget, outputs)
    ranges: Sequence[Range] = ()
    if lengths is None:
        program = making.capture(model, args, kwargs)
        made = making.write(model, program, making.plan(program), 0)
    else:
        made, ranges = over(making, model, args, kwargs, *lengths)
    return prove_built(
        model,
        made,
        whole_outputs=outputs == "whole",
        reduce_gradients=reduce_gradients,
        exact=exact,
        ranges=ranges,
    )


def prove_built(
    model: nn.Module,
    made: Built,
    *,
    whole_outputs: bool = False,
    reduce_gradients: bool = True,
    exact: bool = False,
    lengths: tuple[int, ...] = (),
    ranges: Sequence[Range] = (),
    refute: bool = True,
) -> Certificate:
    """The certificate of the functions of `made`; where their lengths are free, at `lengths`, which
    its program and plan are of, or in `ranges`, of which both speak."""
    names = names_of(model, made.program, made.number)
    goal = task(
        made.program,
        made.plan,
        made.functions,
        names,
        whole_outputs=whole_outputs,
        lengths=lengths,
        ranges=ranges,
    )
    runtime = hooks(reduce_gradients=reduce_gradients)
    return prove_task(goal, runtime, exact=exact, refute=refute)


def _making(
    ranks: int,
    topology: Topology,
    ways: Sequence[Way] | None,
    budget: int | None,
    outputs: str,
) -> Making:
    def capture(model: nn.Module, args: Any, kwargs: Any, free: Any = None) -> Program:
        program = captured(model, args, kwargs, free)
        return only_losses(program) if outputs == "loss" else program

    def plan(program: Program) -> ShardPlan:
        return plan_shards(program, ranks, topology, ways=ways, budget=budget)

    def write(model: nn.Module, program: Program, plan: ShardPlan, number: int) -> Built:
        return built(model, program, plan, whole_outputs=outputs == "whole", number=number)

    return Making(capture, plan, write, None)


def captured(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    free: Mapping[int, Mapping[int, Any]] | None = None,
) -> Program:
    """The training step as a program whose losses have rules. Raises CaptureError."""
    exported = export_training(model, args, kwargs, free)
    return from_exported(taken_apart(exported, rules().__contains__), training=True)


def built(
    model: nn.Module,
    program: Program,
    plan: ShardPlan,
    *,
    whole_outputs: bool = False,
    number: int = 0,
) -> Built:
    """The functions of every submodule for one captured program and its plan; `number` tells it
    from others of the model."""
    lines = shard_lines(program, plan, whole_outputs=whole_outputs)
    texts = functions(lines, names_of(model, program, number), number)
    return Built(program, plan, lines, texts, number=number)


def plan_shards(
    program: Program,
    ranks: int,
    topology: Topology,
    *,
    ways: Sequence[Way] | None = None,
    budget: int | None = None,
) -> ShardPlan:
    """The plan of a captured training step (or prefill) for `ranks` ranks; `budget` in bytes of
    a device.

    Raises BudgetError if nothing fits.
    """
    if program.symbols:
        raise InputError("a program with free lengths", fix="capture it at one length")
    sites = find_sites(program)
    if not sites:
        raise CaptureError(
            "the model has no fused attention to shard",
            allowed="models that call torch.nn.functional.scaled_dot_product_attention",
            fix='for Hugging Face models: attn_implementation="sdpa"',
        )
    choice = choose(sites, ranks, topology, room=budget, ways=ways)
    placer = Placer(program, sites, ranks, choice.orders[0])
    spreading = placer.run()
    held = max((c.held for c in choice.chosen), default=0)
    head = find_head(program, spreading.steps, spreading.places)
    memory, rowwise = plan_memory(
        program,
        sites,
        spreading,
        lambda size: Layout(size, ranks, choice.orders[0]).local,
        topology,
        ranks=ranks,
        budget=budget,
        held=held,
        head=head,
    )
    inputs = tuple(
        (i.target, at)
        for i in program.users_inputs()
        if (at := spreading.wants.get(i.node)) is not None
    )
    return ShardPlan(
        ranks=ranks,
        order=choice.orders[0],
        sites=sites,
        chosen=choice.chosen,
        candidates=choice.tried,
        steps=tuple(spreading.steps.values()),
        inputs=inputs,
        outputs=tuple(
            spreading.places.get(o) if isinstance(o, fx.Node) else None for o in program.outputs
        ),
        notes=spreading.notes,
        memory=memory,
        links=topology.name,
        time=_time(program, spreading, sites, choice.chosen, memory, ranks, topology),
        head=() if head is None else tuple(n.name for n in head.scores),
        head_parts=memory.head_parts,
        stretches=tuple(
            one.on(-(-placer.rows(one.size) // memory.parts), placer.on_rows)
            for one in rowwise
            if memory.parts > 1
        ),
    )


def _time(
    program: Program,
    spreading: Spreading,
    sites: tuple[Site, ...],
    chosen: tuple[Candidate, ...],
    memory: DeviceMemory,
    ranks: int,
    topology: Topology,
) -> StepTime:
    """Backward does twice what forward does."""
    whole = local = 0.0
    attentions = {s.node for s in sites}
    for node, step in spreading.steps.items():
        if node.name in attentions:
            continue
        flops = 3 * float(flow_of(program.ops[node]).flops)
        whole += flops
        local += flops if step.kind in ("whole", "fixed") else flops / ranks
    return step_time(
        chosen,
        whole,
        local,
        sum(flops_of(s) for s in sites) / (topology.attention or topology.flops),
        memory.needs.parameters if memory.needs else 0,
        memory.extra_seconds,
        ranks,
        topology,
    )


def device_budget(memory: Memory) -> int | None:
    """A budget per device in bytes. Raises QuireError for what is none."""
    if isinstance(memory, float) or memory == "min":
        raise QuireError(
            f"memory={memory!r} for devices", allowed='bytes, or a text such as "70GiB"'
        )
    found = parse_budget(memory, 0)
    return None if found is None else int(found)


def topology_of(links: str | Topology | None, device: str, ranks: int = 0) -> Topology:
    """A preset by name, a file of `quire mesh`, or, for None, what `quire mesh` measured of so many
    ranks, else the device's preset."""
    if isinstance(links, Topology):
        return links
    if links is not None and links.endswith(".json"):
        return read_mesh(Path(links))
    if links is None:
        if ranks and (path := mesh_file(device, ranks)).exists():
            return read_mesh(path)
        name = torch.cuda.get_device_name().lower() if device == "cuda" else "cpu"
        return next((t for k, t in TOPOLOGIES.items() if k in name), TOPOLOGIES["h100"])
    if links.lower() not in TOPOLOGIES:
        raise QuireError(
            f"no preset {links!r} for links", allowed=", ".join(TOPOLOGIES), fix="name one of these"
        )
    return TOPOLOGIES[links.lower()]


def names_of(model: nn.Module, program: Program, number: int = 0) -> dict[str, list[str]]:
    """All names of each parameter, buffer and constant of `program` in the module tree."""
    by_tensor: dict[int, list[str]] = {}
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    for name, tensor in named:
        by_tensor.setdefault(id(tensor), []).append(name)
    group = {name: names for names in by_tensor.values() for name in names}
    return {
        i.target: group.get(i.target, [constant_name(i.target, number)])
        for i in program.inputs
        if i.kind != "user"
    }
