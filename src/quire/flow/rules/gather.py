"""Ops that read by index, and sorting: the indexed dim is read whole, the others split."""

from __future__ import annotations

from quire.capture.program import Op, Operand, Size
from quire.flow.registry import rule
from quire.flow.relation import Axis, Flow, Span, span
from quire.flow.rules.common import (
    aten,
    broadcast,
    equal,
    make_axis,
    make_flow,
    mapped,
    nothing,
    numel,
    others,
    wrap,
)


@rule(*aten("embedding"))
def embedding(op: Op) -> Flow:
    table, index = op["weight"], op["indices"]
    axes = mapped(op, {d: d for d in range(index.ndim)}, index)
    axes += mapped(op, {1: index.ndim}, table)
    return make_flow(op, axes)


@rule(*aten("index_select"))
def index_select(op: Op) -> Flow:
    source, index = op["self"], op["index"]
    dim = wrap(op["dim"], source.ndim)
    axes = mapped(op, others(source.ndim, dim), source)
    if index.ndim == 1 and source.ndim:
        axes += mapped(op, {0: dim}, index)
    return make_flow(op, axes)


@rule(*aten("gather"))
def gather(op: Op) -> Flow:
    """The index may be smaller than the tensor: an element reads the tensor at its own place."""
    source, index = op["self"], op["index"]
    if source.ndim != index.ndim:
        return nothing(op, "a 0-dim operand stands for one of 1 dim")
    dim = wrap(op["dim"], source.ndim)
    axes = []
    for d, size in enumerate(index.shape):
        reads = {index.index: span(d)} | ({} if d == dim else {source.index: span(d)})
        axes.append(make_axis(op, size, reads, {0: span(d)}))
    return make_flow(op, axes)


@rule(*aten("take_along_dim"))
def take_along_dim(op: Op) -> Flow:
    source, index = op["self"], op["indices"]
    if op["dim"] is None:
        dims = {0: 0} if index.ndim == 1 else {}
        return make_flow(op, mapped(op, dims, index), why="it flattens its operands first")
    dim = wrap(op["dim"], source.ndim)
    axes = []
    for d, size in enumerate(op.out.shape):
        reads: dict[int, Span] = {}
        for operand in (index,) if d == dim else (source, index):
            found = broadcast(operand, op.out.shape, d)
            if isinstance(found, Span):
                reads[operand.index] = found
            elif found is not None:
                break
        else:
            axes.append(make_axis(op, size, reads, {0: span(d)}))
    return make_flow(op, axes, why="the operands' sizes are not known to match")


@rule(*aten("take"))
def take(op: Op) -> Flow:
    index: Operand = op["index"]
    return make_flow(op, mapped(op, {d: d for d in range(index.ndim)}, index))


@rule(*aten("topk sort sort.stable argsort argsort.stable msort"))
def sort(op: Op) -> Flow:
    source: Operand = op["self"]
    # Only within a row of 0 or 1 elements does `dim` of a 0-dim tensor make sense.
    dim = wrap(op.get("dim", 0), source.ndim)
    axes = mapped(op, others(source.ndim, dim), source)
    return make_flow(op, axes, why="sorted over this dim", flops=10 * source.info.numel)


def indexing(op: Op) -> tuple[list[Operand | None], tuple[Size, ...] | None, int]:
    """The index of each dim of `self`, the shape they broadcast to, and where it is placed.

    The place is the first indexed dim if the indexed dims stand side by side, else 0. A mask
    stands for as many dims as it has; the shape is then not known (None).
    """
    source: Operand = op["self"]
    indices: list[Operand | None] = []
    masked = False
    for index in op["indices"]:
        if index is not None and index.info.dtype.itemsize == 1:
            masked = True
            indices += [index] * index.ndim
        else:
            indices.append(index)
    indices += [None] * (source.ndim - len(indices))
    used = [d for d, index in enumerate(indices) if index is not None]
    place = used[0] if used and used[-1] - used[0] + 1 == len(used) else 0
    if masked:
        return indices, None, place
    shape: list[Size] = []
    for index in dict.fromkeys(i for i in indices if i is not None):
        shape = [1] * (index.ndim - len(shape)) + shape
        for d in range(1, index.ndim + 1):
            if shape[-d] == 1:
                shape[-d] = index.shape[-d]
    return indices, tuple(shape), place


def kept_dims(indices: list[Operand | None], place: int, width: int) -> dict[int, int]:
    """Dims of `self` that no index stands at, to dims of what indexing gives.

    The broadcast indices take `width` dims of that, from `place` on.
    """
    kept = [d for d, index in enumerate(indices) if index is None]
    return {d: i if i < place else i + width for i, d in enumerate(kept)}


@rule(*aten("index.Tensor _unsafe_index.Tensor"))
def index_tensor(op: Op) -> Flow:
    source: Operand = op["self"]
    indices, shape, place = indexing(op)
    if all(index is None for index in indices):
        return make_flow(op, mapped(op, others(source.ndim), source))
    used = [index for index in dict.fromkeys(indices) if index is not None]
    width = 1 if shape is None else len(shape)
    axes = mapped(op, kept_dims(indices, place, width), source)
    reasons: dict[int, str] = {}
    if shape is None:
        reasons[place] = "how many elements a mask keeps depends on the data"
    for d, size in enumerate(shape or ()):
        reads: dict[int, Span] = {}
        for index in used:
            found = broadcast(index, shape or (), d)
            if isinstance(found, Span):
                reads[index.index] = found
            elif found is not None:
                reasons[place + d] = found
        if place + d not in reasons:
            axes.append(make_axis(op, size, reads, {0: span(place + d)}))
    return make_flow(op, axes, reasons=reasons)


@rule(*aten("index_put _unsafe_index_put"))
def index_put(op: Op) -> Flow:
    """Dims of `self` without an index split; the values are broadcast to what indexing gives."""
    source, values = op["self"], op["values"]
    indices, shape, place = indexing(op)
    width = 1 if shape is None else len(shape)
    dims = kept_dims(indices, place, width)
    axes: list[Axis] = []
    for d, at in dims.items():
        own = at - (len(dims) + width - values.ndim)
        reads = {source.index: span(d)}
        if own >= 0 and values.shape[own] != 1:
            if not equal(values.shape[own], source.shape[d]):
                continue
            reads[values.index] = span(own)
        axes.append(make_axis(op, source.shape[d], reads, {0: span(d)}))
    axes += mask_axes(op, indices, len(dims) - place)
    return make_flow(op, axes, why="an index may stand for any place in this dim")


def mask_axes(op: Op, indices: list[Operand | None], behind: int) -> list[Axis]:
    """The dims of a mask that is the only index, if all it chooses get the same values.

    `behind` dims of the values stand for dims of `self` after the mask's.
    """
    source, values = op["self"], op["values"]
    used = [d for d, index in enumerate(indices) if index is not None]
    masks = {id(index): index for index in indices if index is not None}
    if len(masks) != 1:
        return []
    (mask,) = masks.values()
    own = values.ndim - behind - 1
    if mask.info.dtype.itemsize != 1 or (own >= 0 and values.shape[own] != 1):
        return []
    return [
        make_axis(
            op,
            source.shape[d],
            {source.index: span(d), mask.index: span(d - used[0])},
            {0: span(d)},
        )
        for d in used
    ]


@rule(*aten("index_add index_copy index_reduce index_fill.int_Scalar index_fill.int_Tensor"))
def index_add(op: Op) -> Flow:
    source: Operand = op["self"]
    dim = wrap(op["dim"], source.ndim)
    more: Operand | None = op.get("source")
    axes = []
    for d, size in enumerate(source.shape):
        reads = {source.index: span(d)}
        if more is not None:
            if more.ndim != source.ndim or not equal(more.shape[d], size):
                continue
            reads[more.index] = span(d)
        if d != dim:
            axes.append(make_axis(op, size, reads, {0: span(d)}))
    return make_flow(op, axes, why="an index may stand for any place in this dim", flops=numel(op))


@rule(
    *aten("""
    scatter.value scatter.src scatter.reduce scatter.value_reduce scatter_add scatter_reduce.two
""")
)
def scatter(op: Op) -> Flow:
    """Dims in which the index is as large as the tensor split; the source may be larger."""
    source, index = op["self"], op["index"]
    more: Operand | None = op.get("src")
    if source.ndim != index.ndim:
        return nothing(op, "a 0-dim operand stands for one of 1 dim")
    dim = wrap(op["dim"], source.ndim)
    axes = []
    for d, size in enumerate(source.shape):
        if d == dim or not equal(index.shape[d], size):
            continue
        reads = {source.index: span(d), index.index: span(d)}
        if more is not None:
            reads[more.index] = span(d)
        axes.append(make_axis(op, size, reads, {0: span(d)}))
    return make_flow(op, axes, why="an index may stand for any place in this dim", flops=numel(op))


@rule(*aten("one_hot"))
def one_hot(op: Op) -> Flow:
    source: Operand = op["self"]
    if not isinstance(op["num_classes"], int) or op["num_classes"] <= 0:
        return nothing(op, "the number of classes depends on the data")
    return make_flow(op, mapped(op, {d: d for d in range(source.ndim)}, source))


@rule(*aten("bucketize.Tensor isin.Tensor_Tensor isin.Tensor_Scalar searchsorted.Tensor"))
def lookup(op: Op) -> Flow:
    """Each element is looked up in a table that is read whole."""
    name = op.target._schema.name.removeprefix("aten::")
    if name == "isin":
        return make_flow(op, mapped(op, others(op.out.ndim), op["elements"]))
    source: Operand = op["self"]
    axes = mapped(op, others(source.ndim), source)
    if name == "searchsorted" and op["sorted_sequence"].ndim != 1:
        table: Operand = op["sorted_sequence"]
        rows = [o for o in (table, op["sorter"], source) if o is not None]
        axes = [
            make_axis(
                op,
                size,
                {o.index: span(d) for o in (rows if d < source.ndim - 1 else [source])},
                {0: span(d)},
            )
            for d, size in enumerate(source.shape)
        ]
    return make_flow(op, axes)


@rule(
    *aten("""
    nonzero masked_select masked_scatter where unique_dim _unique2 put
    unique_consecutive embedding_bag
""")
)
def by_data(op: Op) -> Flow:
    return nothing(op, "what it reads, or how much it gives, depends on the data")


@rule(*aten("grid_sampler grid_sampler_2d grid_sampler_3d"))
def grid_sampler(op: Op) -> Flow:
    """Batch, channels and places of the grid split; any pixel may be read."""
    source, grid = op["input"], op["grid"]
    last = grid.ndim - 1
    reads = {source.index: span(0), grid.index: span(0)}
    axes = [make_axis(op, source.shape[0], reads, {0: span(0)})]
    axes += mapped(op, {1: 1}, source)
    axes += mapped(op, {d: d + 1 for d in range(1, last)}, grid)
    return make_flow(op, axes, flops=8 * numel(op))
