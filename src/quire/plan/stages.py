"""Which steps to run first, and which cheap ones twice.

An attention's query rows can be split only once its keys and values are whole. So what is read
whole is made first, in a *stage* of its own, and a cheap step that two stages read (a norm) is
run by both, part by part, instead of being kept whole from one to the other.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence

import attrs
from torch import fx

from quire.cost.contraction import relaid_bytes
from quire.cost.model import Model
from quire.flow.propagate import Cut, Storage, cut_for, reads_of
from quire.flow.relation import Join, Span

SMALL_SHARE = 64
"""A tensor below this fraction of the peak is kept rather than made again."""

Stage = Hashable


@attrs.frozen
class Run:
    """One run of `node`, in `stage`. `sources` names the stage of the run that makes each of the
    nodes it reads."""

    node: fx.Node
    stage: Stage
    sources: Mapping[fx.Node, Stage]


def staged(model: Model, peak: int, *, again: bool = True) -> list[Run]:
    """Every call of the program, as often as it runs, in order.

    `peak` is the program's own peak in bytes; with `again` false nothing runs twice.
    """
    storage = model.storage
    early = {step: read_whole(model, step) for step in storage.steps}
    runs: dict[tuple[fx.Node, Stage], Run] = {}
    wanted: dict[fx.Node, dict[Stage, None]] = {}
    stage_of: dict[tuple[fx.Node, Stage], Stage] = {}
    outputs = [o for o in storage.program.outputs if isinstance(o, fx.Node)]
    for node in outputs:
        wanted.setdefault(node, {})["output", node] = None
    for node in reversed(storage.program.graph.nodes):
        if node.op != "call_function":
            continue
        wants = list(wanted.get(node, ()))
        small = peak // SMALL_SHARE if again else peak + 1
        once = len(wants) > 1 and not _made_again(model, node, small)
        stages = [node] if once else wants
        for want in wants:
            stage_of[node, want] = node if once else want
        for stage in stages:
            sources = {}
            for read in node.all_input_nodes:
                first = read in early.get(node, ())
                sources[read] = ("before", node) if first else stage
                wanted.setdefault(read, {})[sources[read]] = None
            runs[node, stage] = Run(node, stage, sources)
    runs = {
        key: attrs.evolve(run, sources={n: stage_of.get((n, s), s) for n, s in run.sources.items()})
        for key, run in runs.items()
    }
    ends = [
        (node, stage_of[node, ("output", node)]) for node in outputs if node.op == "call_function"
    ]
    return list(_ordered(runs, ends, early))


def _ordered(
    runs: Mapping[tuple[fx.Node, Stage], Run],
    ends: Sequence[tuple[fx.Node, Stage]],
    early: Mapping[fx.Node, frozenset[fx.Node]],
) -> Iterator[Run]:
    """Depth first from the outputs, what is read whole before what is read by part."""
    done: set[tuple[fx.Node, Stage]] = set()
    stack = [(key, False) for key in reversed(ends)]
    while stack:
        key, ready = stack.pop()
        if key in done or key not in runs:
            continue
        run = runs[key]
        if ready:
            done.add(key)
            yield run
            continue
        stack.append((key, True))
        first = early.get(run.node, frozenset())
        reads = sorted(run.sources, key=lambda n: n not in first)
        stack += [((n, run.sources[n]), False) for n in reversed(reads)]


def _made_again(model: Model, node: fx.Node, small: int) -> bool:
    """Whether a run of its own for each stage costs little and keeps no more alive: a view, or
    a large tensor made by cheap steps from a tensor that others read too."""
    storage = model.storage
    if storage.base.get(node) is not node:
        return node in storage.base
    return model.nbytes.get(node, 0) >= small and _cheap_from_shared(model, node)


def _cheap_from_shared(model: Model, step: fx.Node) -> bool:
    storage = model.storage
    if model.kinds[step] in ("gemm", "attention", "conv"):
        return False
    reads = {storage.base[o.node] for o in storage.program.ops[step].operands}
    large = [r for r in reads if r in model.nbytes and 8 * model.nbytes[r] >= model.nbytes[step]]
    shared = (len(storage.readers[r]) > 1 or _cheap_from_shared(model, r) for r in large)
    return len(large) <= 1 and all(shared)


def read_whole(model: Model, step: fx.Node) -> frozenset[fx.Node]:
    """The operands of `step` that are best made first, as it reads them whole along the axis
    that leaves the least to keep: whole operands, and the others over the axis's length.

    Only axes count that the operands read by part can be split along as well; of equal ones, one
    along which what the output meets next is split the same way.
    """
    storage = model.storage
    operands = [o for o in storage.program.ops[step].operands if _activation(storage, o.node)]
    if len({o.node for o in operands}) < 2 or storage.flows[step].pointwise:
        return frozenset()
    best: tuple[float, bool, frozenset[fx.Node]] | None = None
    for index, axis in enumerate(storage.flows[step].axes):
        size = int(axis.size)
        if axis.join is not Join.CONCAT or size < 2 or axis.writes[0] is None:
            continue
        needs = list(reads_of(axis, Cut(index)))
        whole = frozenset(o.node for o in operands if needs[o.index] is None)
        parts = [(o.node, n) for o in operands if (n := needs[o.index]) is not None]
        sources = [_source(storage, node, need) for node, need in parts]
        if not parts or None in sources:
            continue
        kept = sum(int(model.infos[n][0].nbytes) for n in whole)
        kept += sum(int(model.infos[n][0].nbytes) for n, _ in parts) / size
        met = dict(_met(storage, step, axis.writes[0].dim))
        crossed = any(s is not None and met.get(s[0], s[1]) != s[1] for s in sources)
        if best is None or (kept, crossed) < best[:2]:
            best = kept, crossed, whole
    return best[2] if best else frozenset()


def read_across(model: Model) -> list[tuple[fx.Node, fx.Node]]:
    """Products and the operands they read whole in strides that no BLAS takes."""
    return [
        (step, node)
        for step in model.storage.steps
        if model.kinds[step] == "gemm"
        for node in read_whole(model, step)
        if relaid_bytes(model.infos[node])
    ]


def _activation(storage: Storage, node: fx.Node) -> bool:
    return storage.base[node].op == "call_function"


def _source(storage: Storage, node: fx.Node, need: Span) -> tuple[fx.Node, int] | None:
    """The tensor that `need` of `node` is made from, one that several steps read or an input, and
    the dim of it that is split; None if the split does not reach so far."""
    while True:
        base = storage.base[node]
        if node is base and (base.op != "call_function" or len(storage.readers.get(base, ())) > 1):
            return base, need.dim
        maker, output = storage.written(node)
        cut = cut_for(storage.flows[maker], output, attrs.evolve(need, fill=None))
        if cut is None:
            return None
        operands = storage.program.ops[maker].operands
        needs = list(reads_of(storage.flows[maker].axes[cut.axis], cut))
        parts = [(o.node, n) for o in operands if (n := needs[o.index]) is not None]
        live = [(o, n) for o, n in parts if _activation(storage, o)]
        if not live:
            read = [o for o in operands if _activation(storage, o.node)]
            return None if read or not parts else (parts[0][0], parts[0][1].dim)
        node, need = live[0]


def _met(storage: Storage, step: fx.Node, dim: int) -> Iterator[tuple[fx.Node, int]]:
    """What a split of `step`'s output along `dim` asks of the operands it next meets: the tensors
    these are made from, and the dim of each."""
    node = step
    while len(users := [u for u in node.users if u in storage.flows]) == 1:
        user = users[0]
        operands = storage.program.ops[user].operands
        own = next(o.index for o in operands if o.node is node)
        found = None
        for index, axis in enumerate(storage.flows[user].axes):
            read, write = axis.reads[own], axis.writes[0]
            if read is not None and read.dim == dim and write is not None:
                found = index, axis, write
                break
        if found is None:
            return
        index, axis, write = found
        for o in operands:
            need = axis.reads[o.index]
            if o.node is node or need is None or not _activation(storage, o.node):
                continue
            if source := _source(storage, o.node, need):
                yield source
        node, dim = user, write.dim
