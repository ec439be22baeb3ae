"""Ops that show a tensor's elements under other indices."""

from __future__ import annotations

from typing import Any

from quire.verify import term as t
from quire.verify import views as v
from quire.verify.decide import divmod_, maximum, minimum
from quire.verify.meaning.table import means, views
from quire.verify.poly import ONE, ZERO, Poly, poly
from quire.verify.value import NoMeaning, Value
from quire.verify.views import View


def dim_of(x: Value, dim: int, extra: int = 0) -> int:
    return v.dim_in(max(x.ndim + extra, 1), dim)


@views("view", "_unsafe_view", "reshape", "view_copy", "_reshape_alias", "_reshape_copy")
def reshape(self: Value, size: Any = None, shape: Any = None, **_: Any) -> View:
    return v.reshape(self.shape, size if size is not None else shape)


@views("flatten")
def flatten(self: Value, start_dim: int = 0, end_dim: int = -1) -> View:
    if not self.ndim:
        return v.reshape(self.shape, [1])
    a, b = dim_of(self, start_dim), dim_of(self, end_dim)
    merged = v.product(self.shape[a : b + 1])
    return v.reshape(self.shape, [*self.shape[:a], merged, *self.shape[b + 1 :]])


@views("unflatten")
def unflatten(self: Value, dim: int, sizes: Any) -> View:
    d = dim_of(self, dim)
    inner = v.resolved((self.shape[d],), sizes)
    return v.reshape(self.shape, [*self.shape[:d], *inner, *self.shape[d + 1 :]])


@views("permute", "permute_copy")
def permute(self: Value, dims: Any) -> View:
    return v.permute(self.shape, dims)


@views("transpose", "swapaxes", "transpose_copy")
def transpose(self: Value, dim0: int, dim1: int) -> View:
    order = list(range(self.ndim))
    if order:
        a, b = dim_of(self, dim0), dim_of(self, dim1)
        order[a], order[b] = order[b], order[a]
    return v.permute(self.shape, order)


@views("t", "numpy_T", "t_copy")
def t_(self: Value) -> View:
    return v.permute(self.shape, range(self.ndim)[::-1])


@views("unsqueeze", "unsqueeze_copy")
def unsqueeze(self: Value, dim: int) -> View:
    return v.insert(self.shape, dim_of(self, dim, 1))


@views("squeeze", "squeeze_copy")
def squeeze(self: Value, dim: Any = None) -> View:
    if dim is None:
        dims = range(self.ndim)
    else:
        dims = [dim_of(self, d) for d in (dim if isinstance(dim, list | tuple) else [dim])]
    kept = [s for d, s in enumerate(self.shape) if not (d in dims and s is ONE)]
    return v.reshape(self.shape, kept)


@views("expand", "expand_copy")
def expand(self: Value, size: Any, implicit: bool = False) -> View:
    return v.expand(self.shape, size)


@means("expand_as")
def expand_as(self: Value, other: Value) -> Value:
    return v.through(self, v.expand(self.shape, other.shape))


@views("narrow")
def narrow(self: Value, dim: int, start: Any, length: Any) -> View:
    return v.narrow(self.shape, dim_of(self, dim), start, length)


def clipped(at: Any, size: Poly, otherwise: Poly) -> Poly:
    """An end of a slice as torch reads it: negative from the end, cut to the dim."""
    if at is None or (isinstance(at, int) and at >= 2**62):
        return otherwise
    at = poly(at)
    if at.constant is not None and at.constant < 0:
        at = at + size
    return maximum(minimum(at, size), ZERO)


@views("slice", "slice_copy")
def slice_(self: Value, dim: int = 0, start: Any = None, end: Any = None, step: Any = 1) -> View:
    d = dim_of(self, dim)
    size = self.shape[d]
    lo = clipped(start, size, ZERO)
    hi = maximum(clipped(end, size, size), lo)
    length = hi - lo if step == 1 else divmod_(hi - lo + (step - 1), step)[0]
    return v.strided(self.shape, d, lo, length, step)


@views("select", "select_copy")
def select(self: Value, dim: int, index: Any) -> View:
    return v.select(self.shape, dim_of(self, dim), poly(index))


@views("split", "split_with_sizes", "split_copy", "split_with_sizes_copy", "chunk", "unsafe_split",
       "unsafe_chunk")  # fmt: skip
def split(
    self: Value, split_size: Any = None, dim: int = 0, split_sizes: Any = None, chunks: Any = None
) -> tuple[View, ...]:
    d = dim_of(self, dim)
    size = self.shape[d]
    sizes = split_sizes if split_sizes is not None else split_size
    if not isinstance(sizes, list | tuple):
        n = size.constant
        if n is None:
            raise NoMeaning("a symbolic size split into equal parts")
        step = -(-n // chunks) if chunks is not None else sizes
        sizes = [min(step, n - a) for a in range(0, n, step)] or [0]
    at, found = ZERO, []
    for s in sizes:
        found.append(v.narrow(self.shape, d, at, s))
        at = at + s
    return tuple(found)


@views("unbind", "unbind_copy")
def unbind(self: Value, dim: int = 0) -> tuple[View, ...]:
    d = dim_of(self, dim)
    n = self.shape[d].constant
    if n is None:
        raise NoMeaning("unbind of a symbolic size")
    return tuple(v.select(self.shape, d, poly(k)) for k in range(n))


@views("diagonal")
def diagonal(self: Value, offset: int = 0, dim1: int = 0, dim2: int = 1) -> View:
    a, b = dim_of(self, dim1), dim_of(self, dim2)
    if offset or self.shape[a] is not self.shape[b]:
        raise NoMeaning("a diagonal off the middle")
    kept = [d for d in range(self.ndim) if d not in (a, b)]

    def forward(idx: Any) -> list[Poly]:
        out = [ZERO] * self.ndim
        for d, i in zip(kept, idx, strict=False):
            out[d] = i
        out[a] = out[b] = idx[-1]
        return out

    shape = (*(self.shape[d] for d in kept), self.shape[a])
    return View(shape, forward, None, ("diagonal", a, b))


# --- rearrangements that copy ----------------------------------------------------------------


@means("flip")
def flip(self: Value, dims: Any) -> Value:
    turned = {dim_of(self, d) for d in dims}
    return v.build(
        self.shape,
        self.dtype,
        lambda idx: self.at(
            [self.shape[d] - 1 - i if d in turned else i for d, i in enumerate(idx)]
        ),
    )


@means("roll")
def roll(self: Value, shifts: Any, dims: Any = ()) -> Value:
    shifts = [shifts] if not isinstance(shifts, list | tuple) else shifts
    dims = [dims] if not isinstance(dims, list | tuple) else dims
    if not dims:
        raise NoMeaning("roll of the flattened tensor")
    by = {dim_of(self, d): poly(s) for d, s in zip(dims, shifts, strict=True)}
    return v.build(
        self.shape,
        self.dtype,
        lambda idx: self.at([_turn(i, by[d], self.shape[d]) if d in by else i
                             for d, i in enumerate(idx)]),
    )  # fmt: skip


def _turn(i: Poly, shift: Poly, size: Poly) -> Poly:
    """(i − shift) mod size, for a shift of at most one turn."""
    if shift.constant is not None and size.constant is not None:
        shift = poly(shift.constant % size.constant) if size.constant else shift
    elif shift.constant is not None and shift.constant < 0:
        shift = shift + size
    return t.ite(t.ge(i - shift), i - shift, i - shift + size)


@means("repeat")
def repeat(self: Value, repeats: Any) -> Value:
    lead = len(repeats) - self.ndim
    own = (*(ONE,) * lead, *self.shape)
    shape = [s * r for s, r in zip(own, repeats, strict=True)]

    def element(idx: Any) -> Any:
        inner = [ZERO if s is ONE else divmod_(i, s)[1] for i, s in zip(idx, own, strict=True)]
        return self.at(inner[lead:])

    return v.build(shape, self.dtype, element)


@means("repeat_interleave")
def repeat_interleave(self: Value, repeats: Any, dim: Any = None, output_size: Any = None) -> Value:
    if dim is None or isinstance(repeats, Value):
        raise NoMeaning("repeat_interleave without a dim, or by a tensor")
    d = dim_of(self, dim)
    shape = [s * repeats if k == d else s for k, s in enumerate(self.shape)]
    return v.build(
        shape,
        self.dtype,
        lambda idx: self.at([divmod_(i, poly(repeats))[0] if k == d else i
                             for k, i in enumerate(idx)]),
    )  # fmt: skip


@means("tile")
def tile(self: Value, dims: Any) -> Value:
    lead = self.ndim - len(dims)
    return repeat(self, [*(1,) * max(lead, 0), *dims])


@means("movedim")
def movedim(self: Value, source: Any, destination: Any) -> Value:
    a = [source] if isinstance(source, int) else source
    b = [destination] if isinstance(destination, int) else destination
    order: list[Any] = [None] * self.ndim
    for s, d in zip(a, b, strict=True):
        order[dim_of(self, d)] = dim_of(self, s)
    rest = iter([d for d in range(self.ndim) if d not in order])
    order = [next(rest) if o is None else o for o in order]
    return v.through(self, v.permute(self.shape, order))


@views("unfold")
def unfold(self: Value, dimension: int, size: int, step: int) -> View:
    d = dim_of(self, dimension)
    count = divmod_(self.shape[d] - size, poly(step))[0] + 1
    shape = (*self.shape[:d], count, *self.shape[d + 1 :], poly(size))

    def forward(idx: Any) -> list[Poly]:
        return [*idx[:d], idx[d] * step + idx[-1], *idx[d + 1 : -1]]

    return View(shape, forward, None, ("unfold", d, size, step))
